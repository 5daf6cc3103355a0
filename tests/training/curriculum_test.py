import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.config import LossConfig
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.state import initial_state
from abstractinator.training.curriculum import Curriculum
from abstractinator.training.step import eval_step, train_step
from configs import default
from tests.helpers import tiny_pyramid
from tests.helpers.jitted import jit

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


def test_a_step_moves_all_of_what_learns_and_leaves_the_rest_alone():
  """Of two stages and several queries, of none, and of a top LM."""
  model = tiny_pyramid.make_model(
    tiny_pyramid.make_config(
      {
        'd_model': 20,
        'expander.byte_dropout': 0.2,
        'quantizer.kind': 'rvq',
        'quantizer.codebook_size': 5,
        'pooling.num_queries': 2,
      },
      {'quantizer.kind': 'fsq', 'quantizer.levels': (4, 3)},
    )
  )
  # Decays weights that have no gradient, and has momentum for them.
  optimizer = optax.adamw(1e-2, weight_decay=0.1)
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)]], 40)
  state = jit(
    initial_state,
    model=model,
    optimizer=optimizer,
    batch_size=1,
    sequence_length=40,
  )(jax.random.key(0))
  of_step = dict(
    model=model, weights=weights(1, True), objective=OBJECTIVES['all']
  )
  step = jit(train_step, optimizer=optimizer, seed=0, **of_step)

  def moved(before, after):
    """Whether each leaf has, by level, of parameters and of statistics."""
    found = {'params': {}, 'collections': {}}
    for tree, of_tree in found.items():
      trees = [getattr(state, tree) for state in (before, after)]
      if tree == 'params':
        trees = [{'params': x} for x in trees]
      for path, same in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(np.array_equal, *trees)
      ):
        of_tree.setdefault(path[1].key, []).append(not same)
    return found

  losses = []
  for name in ('level_0', 'level_1', 'top_lm', 'top_lm'):
    after, found = step(state, batch)
    found = jax.device_get(found)
    tiny_pyramid.assert_metrics_agree(found, num_levels=2)
    leaves = moved(state, after)
    for of_tree in leaves.values():
      assert {x for x, have in of_tree.items() if any(have)} <= {name}
    # Of single codes in a row some states are told nothing.
    assert np.mean(leaves['params'][name]) > 0.8, name
    state = after
    losses.append(float(found['loss_total'].total))
  assert losses[3] < losses[2]
  steps = [
    int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.collections)
    if str(path[-1]) == '.step'
  ]
  # A codebook for each stage of the first level.
  assert steps == [1, 1]
  variables = {'params': state.params, **state.collections}
  held_out = jax.eval_shape(
    functools.partial(eval_step, **of_step), variables, batch
  )
  assert set(held_out) <= set(found)
