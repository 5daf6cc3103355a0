"""Rotary positions and SwiGLU against the original's numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops.rope import rope_table, rotate
from tests.helpers.golden_attention import VALUE, hold
from tests.helpers.golden_parts import close, half_split, swiglu


@pytest.mark.golden('c15_rope*')
def test_golden_rotary_positions(golden):
  position = jnp.asarray(golden.arrays['in/positions'])
  width = golden.cfg['head_dim']
  table = rope_table(position, width, base=golden.cfg['base'])
  # Angles are positions times a float32 frequency: up to 8191 radians.
  for got, name in zip(table, ('cos', 'sin'), strict=True):
    want = golden.arrays[f'out/{name}_f32']
    close(got, want, 1e-3, name)
    near = np.asarray(position) < 128
    close(got[near], want[near], VALUE, name)
  x = jnp.moveaxis(jnp.asarray(golden.arrays['in/x']), 1, 2)
  got = rotate(half_split(x, -1), rope_table(jnp.arange(x.shape[1]), width))
  want = jnp.moveaxis(golden.arrays['out/apply_f32'], 1, 2)
  close(got, half_split(want, -1), VALUE)


@pytest.mark.golden('c15_swiglu*')
def test_golden_swiglu(golden):
  rows = np.ones(golden.arrays['in/x'].shape[:2], bool)
  hold(lambda p, x: swiglu(p, '', x), golden, ['x'], rows, '')
