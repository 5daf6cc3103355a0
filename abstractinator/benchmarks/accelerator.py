"""What one GPU makes of the big configs: steps, generation, tests.

    python -m abstractinator.benchmarks.accelerator > accelerator.txt

Run from the repository. Compilation takes minutes, most of it on one core: all
parts compile at once, each in a process of its own, then have the device one
after the other; what is not compiled by half of the time is not waited for.
`--parts step_256 step_512` leaves the others out. The tests come last, with
five minutes of their own. Ends with an error if a part failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

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
# To try products out takes most of the time of a compilation, and beside others
# it says little: those of cuBLAS, as it suggests them.
_QUICK = '--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0'
# Products in float32 in full, as the tests expect.
_EXACT = {
  'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
  'JAX_PLATFORMS': 'cuda,cpu',
}
_TEST_SECONDS = 300.0
_LINES = 60


def run(
  commands: Mapping[str, Sequence[str]],
  environment: Mapping[str, str],
  seconds: float,
) -> Iterator[tuple[str, str, bool]]:
  """Runs commands of Python side by side; those that share take turns.

  Args:
    commands: By name.
    environment: Added to that of this process.
    seconds: After which they are stopped.

  Yields:
    The name of each as it ends, its last lines, and whether it ended well.
  """
  end = time.monotonic() + seconds
  with tempfile.TemporaryDirectory() as directory:
    shared = turns.environment(directory, len(commands), seconds / 2)
    files = {name: open(f'{directory}/{name}.out', 'w+') for name in commands}
    processes = {
      name: subprocess.Popen(
        (sys.executable, *command),
        env=os.environ | shared | environment,
        stdout=files[name],
        stderr=subprocess.STDOUT,
        # So that what it has started itself is stopped with it.
        start_new_session=True,
      )
      for name, command in commands.items()
    }
    try:
      while processes:
        time.sleep(0.1)
        is_over = time.monotonic() > end
        for name, process in list(processes.items()):
          if process.poll() is None and not is_over:
            continue
          del processes[name]
          status = process.poll()
          _stop(process)
          turns.give_up(directory, process.pid)
          files[name].seek(0)
          lines = files[name].read().strip().splitlines()[-_LINES:]
          if status != 0:
            lines.append('stopped: out of time' if status is None else 'FAILED')
          yield name, '\n'.join(lines), status == 0
    finally:
      for process in processes.values():
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass  # It has ended, and all that it has started.
  process.wait()


def main() -> int:
  """Runs parts, and prints what they say."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parts = [*MEASURED, 'tests']
  parser.add_argument('--parts', nargs='+', choices=parts, default=parts)
  parser.add_argument(
    '--minutes', type=float, default=15.0, help='of all but the tests'
  )
  args = parser.parse_args()
  # Else what was started would go on.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  failed = []

  def show(commands, environment, seconds):
    for name, output, is_well in run(commands, environment, seconds):
      shown = ' '.join(('python', *commands[name]))
      print(f'## {name}\n\n    {shown}\n\n{output}\n', flush=True)
      if not is_well:
        failed.append(name)

  measured = {name: MEASURED[name] for name in MEASURED if name in args.parts}
  quick = {
    # The memory of the device is for whoever has it.
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    'XLA_FLAGS': f'{_QUICK} {os.environ.get("XLA_FLAGS", "")}',
  }
  show(measured, quick, 60 * args.minutes)
  if 'tests' in args.parts:
    show({'tests': TESTS}, _EXACT, _TEST_SECONDS)
  if failed:
    print(f'failed: {", ".join(failed)}', file=sys.stderr)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
