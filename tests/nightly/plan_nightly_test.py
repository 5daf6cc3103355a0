"""Plans for TPU slices that are not at hand, by the compiler of TPUs.

pip install -e '.[test,tpu-plan]'
pytest -m nightly tests/nightly/plan_nightly_test.py -n 0
"""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.nightly

ROOT = pathlib.Path(__file__).parents[2]


def plan(*args):
  done = subprocess.run(
    [sys.executable, '-m', 'abstractinator', 'plan', '--json', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_a_small_slice():
  found = plan(
    '--config=configs/tiny.py',
    '--topology=v5e-4',
    '--mesh=4,1,1',
    '--mesh=1,4,1',
  )
  replicated, sharded = found['candidates']
  for candidate in (replicated, sharded):
    assert candidate['refused'] is None
    assert candidate['kernels'] >= 6
    assert candidate['unbounded_loops'] == 0
    # A tiny batch and state, on a chip of 16 GB.
    assert 1e6 < candidate['memory_bytes'] < 1e8
    step = candidate['roofline']['step']
    most = 4 * found['topology']['chip']['flops_per_second'] * step
    used = found['sizes']['model_flops'] / most
    assert candidate['utilisation'] == pytest.approx(used)
    assert 0 < used < 1
  # The gradient of all parameters is summed over the chips.
  gradient = 4 * found['sizes']['parameters']
  reduced = replicated['collectives']['all-reduce']['operand_bytes']
  assert gradient <= reduced < 1.2 * gradient
  # Sharded weights are gathered, and each chip keeps a quarter of the state.
  assert 'all-gather' in sharded['collectives']
  assert sharded['state_bytes'] < 0.5 * replicated['state_bytes']
  fastest = min(
    found['candidates'], key=lambda x: x['roofline']['step_in_turn']
  )
  assert found['recommended'] == fastest['mesh']
