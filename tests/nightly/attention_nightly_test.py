"""Kernels of attention, compiled for devices that are not at hand.

    pip install -e '.[test,aot]'
    pytest -m nightly tests/nightly -n 0 -s

Compilers need no device. The compiler for TPU comes with the extra `aot`, that
for GPU with `cuda12` or `cuda13`; without those, nothing is compiled for GPU.
Each compilation has a process of its own, as the cycles that a kernel takes to
issue its instructions are counted in the files which the compiler dumps.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.attention import pallas_tpu, reference

pytestmark = pytest.mark.nightly

SCRIPT = pathlib.Path(__file__).with_name('compile_attention.py')
TOPOLOGIES = ['v5e-4', 'v5p-8', 'v6e-4']
if any(importlib.util.find_spec(f'jax_cuda{n}_plugin') for n in (12, 13)):
  TOPOLOGIES.append('h100x1')


def compile_for(topology, *what, dump=None, script=SCRIPT):
  """Returns what a script that compiles found, one entry per program."""
  environment = dict(os.environ)
  if dump:
    environment['LIBTPU_INIT_ARGS'] = (
      f'--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true'
    )
  done = subprocess.run(
    [sys.executable, script, topology, *what],
    env=environment,
    cwd=SCRIPT.parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  lines = done.stdout.splitlines()
  return [json.loads(line) for line in lines if line.startswith('{')]


@pytest.mark.parametrize(
  'target',
  [
    *((topology,) for topology in TOPOLOGIES),
    *((topology, 'mosaic_gpu') for topology in TOPOLOGIES[3:]),
  ],
  ids='-'.join,
)
def test_kernels_compile_forward_and_backward(target):
  topology, *implementation = target
  programs = compile_for(topology, 'kernels', *implementation)
  print(*programs, sep='\n')
  # Two of the shapes are in float32, which Mosaic GPU does not take.
  assert len(programs) == (6 if implementation else 8)
  for program in programs:
    assert program['kernels'] == 3
    # Less than the squares of the rows, of all heads; small arrays are padded.
    bound = max(program['square bytes'] / 2, 1 << 20)
    assert program['temporary bytes'] < bound


@pytest.mark.parametrize('name', ['regular_pallas', 'mla_pallas'])
def test_the_step_compiles_with_its_kernels(name):
  (program,) = compile_for('v5e-4', name)
  print(program)
  # Attention of four stacks has three kernels each, pooling has two.
  assert program['kernels'] == 4 * 3 + 2


def test_issue_cycles_of_the_forward_pass(tmp_path):
  """Counts cycles on v5e: 8 rows of 8192 ids, 8 heads of 64, a window of 128.

  A program of the grid issues at most all bundles of the kernel.
  """
  (program,) = compile_for('v5e-4', 'long', dump=tmp_path)
  # An array in bfloat16 has 64 MiB: two of them, and the numbers per query.
  assert program['temporary bytes'] < 192 << 20
  (file,) = (
    path
    for path in tmp_path.glob('*schedule-analysis_final_bundles.txt')
    if 'attention_forward' in path.name
  )
  found = re.search(r'total scheduled bundles:\s+(\d+)', file.read_text())
  programs = 8 * (8 // 2) * (8192 // 128)
  cycles = int(found[1]) * programs
  print(f'{cycles:,} cycles')
  assert cycles < 2_300_000


@pytest.mark.parametrize('window', [129, None])
def test_no_races_and_nothing_read_before_it_is_written(window):
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.normal(size=(2, 300, h, 32)), 'float32') for h in (2, 2, 1)
  )
  group = jnp.asarray(np.cumsum(rng.random((2, 300)) < 0.05, axis=1), 'int32')

  def both(function, **kwargs):
    out, pullback = jax.vjp(
      lambda *x: function(
        *x, group_BS=group, window=window, scale=0.2, **kwargs
      ),
      q,
      k,
      v,
    )
    return out, *pullback(jnp.cos(out))

  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')
  got = both(pallas_tpu.attention, interpret=params)
  want = both(reference.attention)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert not interpret_pallas_call.races.races_found
