"""Residual quantizers against the original's numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.golden_quantizers import (
  PAD,
  assert_forward,
  assert_moved,
  is_cold,
  module,
  moved_stages,
  slots,
  state_of,
  staying,
  steps_of,
)


def residual_module(golden):
  ctor = golden.cfg['ctor']
  size = ctor['K']
  return module(
    'rvq',
    ctor,
    depth=ctor['depth'],
    # The original reserves these in stage 0 for special ids.
    forbidden=(size - 3, size - 2, size - 1),
  )


@pytest.mark.golden('c08_*', where=lambda x: 'steps' in x.cfg)
def test_golden_rvq_codes_losses_and_gradients_but_for_their_depth(golden):
  """The original's gradient is `depth` times the identity, ours the identity.

  In the original vectors of zeros are padding; ours is given a mask.
  """
  ctor = golden.cfg['ctor']
  model = residual_module(golden)
  for step, before in steps_of(golden):
    variables = {
      'vq': {
        f'stage{i}': {'state': state_of(before, f'stages.{i}.', ctor['decay'])}
        for i in range(ctor['depth'])
      }
    }
    kept = np.any(golden.arrays[f'in/z{step}'] != 0, axis=-1)
    assert_forward(golden, step, model, variables, ctor['depth'], kept)


@pytest.mark.golden('c08_*', where=lambda x: 'steps' in x.cfg)
def test_golden_rvq_moving_averages_of_each_stage(golden):
  ctor = golden.cfg['ctor']
  model = residual_module(golden)
  for step, before in steps_of(golden):
    if step == '_eval':
      continue
    z = jnp.asarray(golden.arrays[f'in/z{step}'])
    states = [
      state_of(before, f'stages.{i}.', ctor['decay'])
      for i in range(ctor['depth'])
    ]
    variables = {
      'vq': {f'stage{i}': {'state': s} for i, s in enumerate(states)}
    }
    output = model.apply(variables, z, *slots(z))
    after = golden.group(f'state/{step}')
    for i, (digit, got) in enumerate(
      moved_stages(states, output.digits_BPM, z)
    ):
      if f'stages.{i}.codebook' in after:
        is_cold_stage = is_cold(golden, f'stages.{i}.')
        stays = staying(states[i], digit, PAD) if is_cold_stage else None
        assert_moved(got, after, f'stages.{i}.', stays)
