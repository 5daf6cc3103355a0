"""Steps of pyramids of every form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.config import LossConfig
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.state import initial_state
from abstractinator.training.step import eval_step, train_step
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


@pytest.mark.parametrize(
  'mode',
  # The other one is trained at night, and traced in `configs_test`.
  ['continuous', pytest.param('discrete', marks=pytest.mark.nightly)],
)
def test_three_levels_have_the_shapes_of_a_step(mode):
  init, step, _ = setup_of(THREE[mode])
  state = jax.eval_shape(init, jax.random.key(0))
  batch = jax.eval_shape(lambda: tiny_pyramid.make_batch([[(40, 0)]], SIZE))
  after, found = jax.eval_shape(step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert ('total_bits_per_byte' in found) == (mode == 'discrete')
  assert ('top_lm_mse_to_target_center' in found) == (mode == 'continuous')


@pytest.mark.nightly
def test_a_step_moves_all_of_three_levels():
  # Of two, `curriculum_test` says it; `stages_test` trains the other mode.
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
    # Of single codes in a row some states are told nothing.
    assert np.mean(leaves) > 0.8, name
  steps = [
    int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.collections)
    if str(path[-1]) == '.step'
  ]
  assert steps == [1] * len(steps)
  # One codebook, two stages and none; or one codebook a level.
  assert len(steps) == 3
  variables = {'params': after.params, **after.collections}
  held_out = jit(
    eval_step, model=model, weights=WEIGHTS, objective=OBJECTIVES['all']
  )(variables, batch)
  assert set(held_out) <= set(found)
  assert float(held_out['loss_total'].total) < float(found['loss_total'].total)
