"""What one GPU makes of the big configs: tests, steps, generation.

    python -m abstractinator.benchmarks.accelerator --output docs/accelerator.md

Run from the repository. Each part is a command of its own, so that it has the
device's memory to itself and that one which fails leaves the others; what was
right is checked before what is fast. Most of the time goes into compilation,
minutes a part: `--parts step_256` runs one alone. Ends with an error if one
failed.
"""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time

_PYTHON = (sys.executable, '-u')
_STEP = (*_PYTHON, '-m', 'abstractinator.benchmarks.config_step')
_SETTINGS = (
  *('--set', 'model.dtype=bfloat16'),
  *('--set', 'model.implementation.scan_layers=True'),
  *('--vary', 'model.implementation.remat=blocks'),
)
_LINES = 40
# Products in float32 in full, as the tests expect.
_EXACT = {
  'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
  'JAX_PLATFORMS': 'cuda,cpu',
}


@dataclasses.dataclass(frozen=True)
class Part:
  """A command.

  Attributes:
    title: Of its section.
    command: What to run.
    limit: Seconds after which it is stopped.
    environment: Added to that of this process.
  """

  title: str
  command: tuple[str, ...]
  limit: int
  environment: dict[str, str] = dataclasses.field(default_factory=dict)


PARTS = {
  'tests': Part(
    'Cached equals recomputed; kernels equal their references over 20 steps',
    (
      *(*_PYTHON, '-m', 'pytest', '-q', '-n', '0', '-p', 'no:cacheprovider'),
      'tests/modules/generation_test.py',
      'tests/training/implementation_test.py',
    ),
    900,
    _EXACT,
  ),
  'step_256': Part(
    'A training step, 256 wide',
    (*_STEP, 'regular_pallas', *_SETTINGS, '--set', 'data.batch_size=64'),
    900,
  ),
  'step_512': Part(
    'A training step, 512 wide',
    (*_STEP, 'regular_pallas_512', *_SETTINGS, '--set', 'data.batch_size=16'),
    900,
  ),
  'generate': Part(
    'Generation',
    (
      *(*_PYTHON, '-m', 'abstractinator.benchmarks.generate'),
      *('--config', 'regular_pallas', '--contexts', '512'),
      *('--batches', '1', '16', '256'),
    ),
    900,
  ),
  'decode': Part(
    'Codes to bytes, side by side and one by one',
    (*_PYTHON, '-m', 'abstractinator.benchmarks.decode'),
    300,
  ),
  'train': Part(
    'The main job', (*_PYTHON, 'train.py', '--workdir', 'WORKDIR'), 900
  ),
}


def run(part: Part, workdir: str) -> tuple[str, bool]:
  """Runs a command.

  Args:
    part: Which.
    workdir: Takes the place of WORKDIR in it.

  Returns:
    Its section, in Markdown, and whether it ended well.
  """
  command = [workdir if x == 'WORKDIR' else x for x in part.command]
  began = time.perf_counter()
  process = subprocess.Popen(
    command,
    env=os.environ | part.environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    # So that what it has started itself is stopped with it.
    start_new_session=True,
  )
  try:
    output, _ = process.communicate(timeout=part.limit)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    output += f'\nstopped after {part.limit} s'
  seconds = time.perf_counter() - began
  is_well = process.returncode == 0
  # Of what goes wrong, the end says most; tables are printed last, too.
  lines = output.strip().splitlines()[-_LINES:]
  shown = ' '.join(('python', *part.command[len(_PYTHON) :]))
  return (
    f'## {part.title}\n\n    {shown}\n\n'
    + '\n'.join(lines)
    + f'\n\n{"Done" if is_well else "FAILED"} after {seconds:.0f} s.\n'
  ), is_well


def main() -> int:
  """Runs parts, and prints and writes what they say."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
  parser.add_argument('--output', help='file for all of it')
  args = parser.parse_args()
  file = open(args.output, 'w') if args.output else None
  failed = []
  with tempfile.TemporaryDirectory() as directory:
    for name in args.parts:
      section, is_well = run(PARTS[name], f'{directory}/run')
      failed += [] if is_well else [name]
      for target in filter(None, (sys.stdout, file)):
        print(section, file=target, flush=True)
  if failed:
    print(f'failed: {", ".join(failed)}', file=sys.stderr)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
