"""What one accelerator makes of the big configs: steps, generation, tests.

    python -m abstractinator.benchmarks.accelerator > accelerator.txt

Run from the repository. Compilation takes minutes, most of it on one core: all
parts compile at once, each in a process of its own, then have the device one
after the other. `--parts step_256 step_512` leaves the others out. The tests
come last. Ends with an error if a part failed.
"""

import argparse
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent import futures

from abstractinator.benchmarks import turns

_STEP = ('-m', 'abstractinator.benchmarks.config_step')
_BFLOAT16 = ('--set', 'model.dtype=bfloat16')
_256 = (*_STEP, 'regular_pallas', *_BFLOAT16, '--set', 'data.batch_size=64')
_512 = (*_STEP, 'regular_pallas_512', *_BFLOAT16, '--set', 'data.batch_size=16')
_REMAT = ('--set', 'model.implementation.remat=blocks')
MEASURED = {
  'step_256': _256,
  'step_256_remat': (*_256, *_REMAT),
  'step_512': _512,
  'step_512_remat': (*_512, *_REMAT),
  'generate': (
    *('-m', 'abstractinator.benchmarks.generate', '--config', 'regular_pallas'),
    *('--contexts', '512', '--batches', '1', '16', '256', '--num_calls', '4'),
  ),
  'decode': ('-m', 'abstractinator.benchmarks.decode'),
}
TESTS = (
  *('-m', 'pytest', '-n', '0', '-p', 'no:cacheprovider'),
  'tests/modules/generation_test.py',
  'tests/training/implementation_test.py',
)
_SHARED = {
  'PYTHONUNBUFFERED': '1',
  # The memory of a device is for whoever has it.
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  # Tried out, products would take most of the time, and beside others it would
  # say little: those of cuBLAS as it suggests them.
  'XLA_FLAGS': (
    '--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0'
  ),
}
# Products in float32 in full, as the tests expect.
_EXACT = {
  'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
  'JAX_PLATFORMS': 'cuda,cpu',
}
_LINES = 40


def _run(
  command: Sequence[str],
  environment: Mapping[str, str],
  end: float,
  turns_at: str | None,
) -> tuple[str, bool]:
  """Runs a command; its last lines, and whether it ended well."""
  process = subprocess.Popen(
    (sys.executable, *command),
    env=os.environ | _SHARED | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    # So that what it has started itself is stopped with it.
    start_new_session=True,
  )
  try:
    output, _ = process.communicate(timeout=max(end - time.monotonic(), 0))
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    output += '\nstopped: out of time'
  if turns_at is not None:
    turns.give_up(turns_at, process.pid)
  # Of what goes wrong, the end says most; tables are printed last, too.
  lines = output.strip().splitlines()[-_LINES:]
  is_well = process.returncode == 0
  return '\n'.join(lines) + ('' if is_well else '\nFAILED'), is_well


def main() -> int:
  """Runs parts, and prints what they say."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parts = [*MEASURED, 'tests']
  parser.add_argument('--parts', nargs='+', choices=parts, default=parts)
  parser.add_argument('--minutes', type=float, default=15.0, help='for all')
  args = parser.parse_args()
  end = time.monotonic() + 60 * args.minutes
  failed = []

  def show(name, command, output, is_well):
    shown = ' '.join(('python', *command))
    print(f'## {name}\n\n    {shown}\n\n{output}\n', flush=True)
    failed.extend([] if is_well else [name])

  chosen = {name: MEASURED[name] for name in MEASURED if name in args.parts}
  with (
    tempfile.TemporaryDirectory() as directory,
    futures.ThreadPoolExecutor(len(MEASURED)) as threads,
  ):
    shared = turns.environment(directory, len(chosen))
    run = functools.partial(_run, environment=shared, end=end)
    results = threads.map(
      lambda command: run(command, turns_at=directory), chosen.values()
    )
    for (name, command), result in zip(chosen.items(), results, strict=True):
      show(name, command, *result)
  if 'tests' in args.parts:
    show('tests', TESTS, *_run(TESTS, _EXACT, end, None))
  if failed:
    print(f'failed: {", ".join(failed)}', file=sys.stderr)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
