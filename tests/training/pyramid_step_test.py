"""Steps of pyramids of every form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator import metrics
from abstractinator.config import LossConfig
from abstractinator.training.objective import OBJECTIVES
from abstractinator.training.state import initial_state
from abstractinator.training.step import eval_step, train_step
from configs import default
from tests import tiny_pyramid
from tests.tiny_top_lm import quick_jit

SIZE = 40
UPPER = (
  {
    'd_model': 20,
    'quantizer.kind': 'rvq',
    'quantizer.codebook_size': 5,
    'pooling.num_queries': 2,
  },
  {'quantizer.kind': 'fsq', 'quantizer.levels': (4, 3)},
)
WEIGHTS = LossConfig.from_dict(default.get_config().loss.to_dict())
THREE = {
  'discrete': tiny_pyramid.make_config({'expander.byte_dropout': 0.2}, *UPPER),
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


@pytest.mark.parametrize('mode', THREE)
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


@pytest.mark.parametrize(
  'num_levels',
  # A third level adds half to what is compiled.
  [2, pytest.param(3, marks=pytest.mark.nightly)],
)
def test_a_step_moves_all_levels(num_levels):
  # `stages_test` trains the other mode.
  config = THREE['discrete']
  if num_levels == 2:
    bottom = {**UPPER[0], 'expander.byte_dropout': 0.2}
    config = tiny_pyramid.make_config(bottom, UPPER[1])
  init, step, model = setup_of(config)
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)]], SIZE)
  state = quick_jit(init)(jax.random.key(0))
  step = quick_jit(step)
  after, found = step(state, batch)
  found = jax.device_get(found)
  for name, mean in found.items():
    assert np.isfinite(mean.total).all(), name
  moved = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    jax.tree.map(lambda a, b: jnp.any(a != b), state.params, after.params)
  ):
    moved.setdefault(path[0].key, []).append(bool(leaf))
  names = [f'level_{i}' for i in range(num_levels)]
  assert set(moved) == {*names, 'top_lm'}
  for name, leaves in moved.items():
    # Of single codes in a row some states are told nothing.
    assert np.mean(leaves) > 0.8, name
  steps = [
    int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.collections)
    if str(path[-1]) == '.step'
  ]
  assert steps == [1] * len(steps)
  # Of three, one codebook, two stages and none; of two, without the first.
  assert len(steps) == num_levels
  summary = metrics.summarize(found)
  for level in range(num_levels):
    assert 0 < summary[f'level{level}/live_code_fraction'] <= 1
  parts = [
    f'level{level}/{part}_bits_per_byte'
    for level in range(num_levels)
    for part in ('expander', 'end')
  ]
  parts += ['top_lm_code_bits_per_byte', 'top_lm_end_bits_per_byte']
  np.testing.assert_allclose(
    summary['total_bits_per_byte'],
    sum(summary[name] for name in parts),
    rtol=1e-6,
  )
  variables = {'params': after.params, **after.collections}
  score = functools.partial(
    eval_step, model=model, weights=WEIGHTS, objective=OBJECTIVES['all']
  )
  if num_levels == 2:
    # Runs evaluate in `stages_test`; that it is less is said by a second step.
    held_out, later = (
      jax.eval_shape(score, variables, batch),
      step(after, batch)[1],
    )
  else:
    held_out = later = quick_jit(score)(variables, batch)
  assert set(held_out) <= set(found)
  assert float(later['loss_total'].total) < float(found['loss_total'].total)
