"""Training steps of pyramids of every form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.config import LossConfig
from abstractinator.objective.eval_step import eval_step
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.state import initial_state, variables_of
from abstractinator.training.step import train_step
from configs import default
from tests.helpers import tiny_pyramid
from tests.helpers.jitted import jit

SIZE = 40
WEIGHTS = LossConfig.from_dict(default.get_config().loss.to_dict())
THREE = {
  'discrete': tiny_pyramid.make_config(
    {'expander.byte_dropout': 0.2},
    {
      'd_model': 20,
      'quantizer.kind': 'rvq',
      'quantizer.codebook_size': 5,
      'pooling.num_queries': 2,
    },
    {'quantizer.kind': 'fsq', 'quantizer.levels': (4, 3)},
  ),
  'continuous': tiny_pyramid.make_config({}, {}, {}, top_lm='continuous'),
}


def setup_of(config):
  model, optimizer = tiny_pyramid.make_model(config), optax.adam(1e-2)
  init = functools.partial(
    initial_state,
    model=model,
    optimizer=optimizer,
    batch_size=1,
    sequence_length=SIZE,
  )
  step = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    weights=WEIGHTS,
    objective=OBJECTIVES['all'],
    seed=0,
  )
  return init, step, model


def codebook_steps(state):
  """The optimizer steps that each codebook has counted."""
  return [
    int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.collections)
    if str(path[-1]) == '.step'
  ]


@pytest.mark.parametrize(
  'mode',
  # Steps of two levels are in other tests of every run.
  [pytest.param(x, marks=pytest.mark.nightly) for x in THREE],
)
def test_three_levels_have_the_shapes_of_a_step(mode):
  init, step, _ = setup_of(THREE[mode])
  state = jax.eval_shape(init, jax.random.key(0))
  batch = jax.eval_shape(lambda: tiny_pyramid.make_batch([[(40, 0)]], SIZE))
  after, found = jax.eval_shape(step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert ('total_bits_per_byte' in found.whole) == (mode == 'discrete')
  assert ('top_lm_mse_to_target_center' in found.whole) == (
    mode == 'continuous'
  )


@pytest.mark.nightly
def test_a_step_moves_all_of_three_levels():
  init, step, model = setup_of(THREE['discrete'])
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)]], SIZE)
  state = jit(init)(jax.random.key(0))
  after, found = jit(step)(state, batch)
  found = jax.device_get(found)
  tiny_pyramid.assert_metrics_agree(found, num_levels=3)
  moved = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    jax.tree.map(lambda a, b: jnp.any(a != b), state.params, after.params)
  ):
    moved.setdefault(path[0].key, []).append(bool(leaf))
  assert set(moved) == {'level_0', 'level_1', 'level_2', 'top_lm'}
  for name, leaves in moved.items():
    # Where a row has a single code, some states get no gradient.
    assert np.mean(leaves) > 0.8, name
  # Levels with one codebook, with two stages, and with none.
  assert codebook_steps(after) == [1, 1, 1]
  variables = {'params': after.params, **after.collections}
  held_out = jit(
    eval_step, model=model, weights=WEIGHTS, objective=OBJECTIVES['all']
  )(variables, batch)
  assert set(held_out.flattened()) <= set(found.flattened())
  after, before = (
    float(x.whole['loss_total'].total) for x in (held_out, found)
  )
  assert after < before


@pytest.mark.nightly
def test_a_step_of_a_curriculum_moves_what_learns_and_nothing_else():
  """Levels with two stages and several queries, and with none; and a top LM."""
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
  # It decays weights that have no gradient, and has momentum for them.
  optimizer = optax.adamw(1e-2, weight_decay=0.1)
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)]], SIZE)
  state = jit(
    initial_state,
    model=model,
    optimizer=optimizer,
    batch_size=1,
    sequence_length=SIZE,
  )(jax.random.key(0))
  weights = dataclasses.replace(
    WEIGHTS, curriculum_steps=1, curriculum_stops=True
  )
  of_step = dict(model=model, weights=weights, objective=OBJECTIVES['all'])
  step = jit(train_step, optimizer=optimizer, seed=0, **of_step)

  def moved(before, after):
    """Flags of leaves that differ, by level: of parameters, of collections."""
    found = {'params': {}, 'collections': {}}
    for path, is_same in jax.tree_util.tree_leaves_with_path(
      jax.tree.map(np.array_equal, variables_of(before), variables_of(after))
    ):
      name = 'params' if path[0].key == 'params' else 'collections'
      found[name].setdefault(path[1].key, []).append(not is_same)
    return found

  losses = []
  for name in ('level_0', 'level_1', 'top_lm', 'top_lm'):
    after, found = step(state, batch)
    found = jax.device_get(found)
    tiny_pyramid.assert_metrics_agree(found, num_levels=2)
    leaves = moved(state, after)
    for of_tree in leaves.values():
      assert {x for x, have in of_tree.items() if any(have)} <= {name}
    # Where a row has a single code, some states get no gradient.
    assert np.mean(leaves['params'][name]) > 0.8, name
    state = after
    losses.append(float(found.whole['loss_total'].total))
  assert losses[3] < losses[2]
  # The codebooks of both stages of the first level advanced once.
  assert codebook_steps(state) == [1, 1]
  held_out = jax.eval_shape(
    functools.partial(eval_step, **of_step), variables_of(state), batch
  )
  assert set(held_out.flattened()) <= set(found.flattened())
