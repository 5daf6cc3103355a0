"""Tests of the kernels of segment pooling, for devices not at hand.

The docstring of `attention_nightly_test` has the command that runs them.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.segment_pool import pallas_tpu, reference
from tests.nightly.attention_nightly_test import TOPOLOGIES, compile_for

pytestmark = pytest.mark.nightly

SCRIPT = pathlib.Path(__file__).with_name('compile_segment_pool.py')


@pytest.mark.parametrize('topology', TOPOLOGIES)
def test_kernels_compile_forward_and_backward(topology):
  programs = compile_for(topology, 'kernels', script=SCRIPT)
  print(*programs, sep='\n')
  assert len(programs) == 5
  for program in programs:
    # The backward pass on GPU has no kernel.
    assert program['kernels'] == (1 if topology.startswith('h') else 2)
    # The compiler copies small arrays to lay them out in tiles.
    bound = max(program['dense bytes'] / 8, 8 << 20)
    assert program['temporary bytes'] < bound


def test_issue_cycles_of_the_forward_pass(tmp_path):
  """Bounds the cycles of 8 heads of 64, 8 rows of 8192 ids, 2048 slots on v5e.

  A step of 512 ids issues each bundle of the kernel at most once. The loops
  over the means at the beginning and end of a row add at most 16 bundles per
  tile.
  """
  compile_for('v5e-4', 'long', dump=tmp_path, script=SCRIPT)
  (file,) = (
    path
    for path in tmp_path.glob('*schedule-analysis_final_bundles.txt')
    if 'jvp_segment_pool_' in path.name and 'transpose' not in path.name
  )
  found = re.search(r'total scheduled bundles:\s+(\d+)', file.read_text())
  tiles = 2048 * 8 * 64 // (8 * 128)
  cycles = 8 * (int(found[1]) * 8192 // 512 + 16 * tiles)
  print(f'{cycles:,} cycles')
  assert cycles < 600_000


def test_no_races_and_nothing_read_before_it_is_written():
  """Rows have several steps, and segments continue from one to the next."""
  rng = np.random.default_rng(0)
  score = jnp.asarray(rng.normal(size=(2, 300, 2, 2)), 'float32')
  value = jnp.asarray(rng.normal(size=(2, 300, 2, 16)), 'float32')
  slot = np.cumsum(rng.random((2, 300)) < [[0.3], [0.01]], axis=1)
  slot = jnp.asarray(slot, 'int32')

  def both(function, **kwargs):
    out, pullback = jax.vjp(
      lambda *x: function(
        *x, slot, jnp.ones_like(slot, bool), num_slots=150, **kwargs
      ),
      score,
      value,
    )
    return out, *pullback(jnp.cos(out))

  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')
  got = both(pallas_tpu.segment_pool, interpret=params, step_blocks=1)
  want = both(reference.segment_pool)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert not interpret_pallas_call.races.races_found
