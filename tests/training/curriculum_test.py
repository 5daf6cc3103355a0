import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.config import LossConfig
from abstractinator.training.curriculum import Curriculum
from abstractinator.training.objective import OBJECTIVES
from abstractinator.training.state import initial_state
from abstractinator.training.step import train_step
from configs import default
from tests import tiny_pyramid
from tests.tiny_top_lm import quick_jit

INTERVAL = 10


def weights(interval, stops):
  values = default.get_config().loss.to_dict()
  values |= {'curriculum_steps': interval, 'curriculum_stops': stops}
  return LossConfig.from_dict(values)


@pytest.mark.parametrize(
  ('stops', 'learning'),
  [
    (False, {0: '0', 9: '0', 10: '01', 19: '01', 20: '01t', 99: '01t'}),
    (True, {0: '0', 9: '0', 10: '1', 19: '1', 20: 't', 99: 't'}),
  ],
)
def test_levels_join_the_objective_one_after_the_other(stops, learning):
  terms = {'level0/end': 2.0, 'level1/end': 2.0, 'top_lm_code': 2.0}
  curriculum = Curriculum(
    weights(INTERVAL, stops), num_levels=2, has_top_lm=True
  )
  for step, names in learning.items():
    joined = curriculum.joined(terms, jnp.int32(step))
    found = [name for name, total in joined.items() if total == 2.0]
    assert ''.join(n.removeprefix('level')[0] for n in found) == names
    assert all(total in (0.0, 2.0) for total in joined.values())


def test_a_single_level_has_no_name():
  terms = {'end': 2.0, 'top_lm_end': 2.0}
  curriculum = Curriculum(
    weights(INTERVAL, True), num_levels=1, has_top_lm=True
  )
  before = {'compressor': jnp.zeros(2), 'top_lm': jnp.zeros(3)}
  after = jax.tree.map(lambda x: x + 1, before)
  for step, name in ((9, 'compressor'), (10, 'top_lm')):
    held = curriculum.hold(after, before, jnp.int32(step))
    assert [key for key in held if held[key].all()] == [name]
    joined = curriculum.joined(terms, jnp.int32(step))
    assert [bool(x) for x in joined.values()] == [
      name == 'compressor',
      name == 'top_lm',
    ]


def test_without_a_top_lm_the_last_level_goes_on():
  terms = {'level0/end': 2.0, 'level1/end': 2.0}
  curriculum = Curriculum(weights(INTERVAL, True), 2, has_top_lm=False)
  for step, learning in ((9, [True, False]), (99, [False, True])):
    joined = curriculum.joined(terms, jnp.int32(step))
    assert [bool(x) for x in joined.values()] == learning


def test_without_an_interval_nothing_is_held():
  curriculum = Curriculum(weights(0, False), num_levels=2, has_top_lm=True)
  terms, after = {'level1/end': 2.0}, {'level_1': jnp.ones(2)}
  assert curriculum.joined(terms, jnp.int32(0)) is terms
  assert curriculum.hold(after, {'level_1': jnp.zeros(2)}, 0) is after


def test_a_step_leaves_alone_what_does_not_learn():
  model = tiny_pyramid.make_model(tiny_pyramid.make_config({}, {}))
  # Decays weights that have no gradient, and has momentum for them.
  optimizer = optax.adamw(1e-2, weight_decay=0.1)
  batch = tiny_pyramid.make_batch([[(15, 0)], [(16, 1)]], 16)
  state = quick_jit(
    functools.partial(
      initial_state,
      model=model,
      optimizer=optimizer,
      batch_size=1,
      sequence_length=16,
    )
  )(jax.random.key(0))
  step = quick_jit(
    functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      weights=weights(1, True),
      objective=OBJECTIVES['all'],
      seed=0,
    )
  )

  def moved(before, after):
    found = set()
    for tree in ('params', 'collections'):
      trees = [getattr(state, tree) for state in (before, after)]
      if tree == 'params':
        trees = [{'params': x} for x in trees]
      for path, same in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(np.array_equal, *trees)
      ):
        found |= set() if same else {path[1].key}
    return found

  for name in ('level_0', 'level_1', 'top_lm', 'top_lm'):
    after, _ = step(state, batch)
    assert moved(state, after) == {name}
    state = after
