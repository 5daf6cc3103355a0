"""Trains every segmentation rule with every quantizer and expander context.

    python -m abstractinator.benchmarks.compare --output=docs/results.md

Run from the repository: each cell is `python train.py
--config=configs/compare.py:RULE,QUANTIZER,CONTEXT`, into
`runs/compare/RULE-QUANTIZER-CONTEXT`. Cells that are done are not done again:
remove them if settings have changed.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
from concurrent import futures
from typing import get_args

import jax

from abstractinator.config.quantizer import Kind
from abstractinator.config.segmentation import Rule

_CELL_CONTEXTS = ('segment', 'window')

# Column by metric of the last evaluation: heading, format, and what to call
# better: the smallest, the largest, or neither.
_COLUMNS = {
  'bytes_per_segment': ('bytes/segment', '{:.2f}', None),
  'code_unigram_bits_per_byte': ('codes', '{:.3f}', None),
  'expander_bits_per_byte': ('bytes given codes', '{:.3f}', None),
  'end_bits_per_byte': ('ends', '{:.3f}', None),
  'total': ('sum, bits/byte', '{:.3f}', min),
  'live_code_fraction': ('live codes', '{:.0%}', None),
  'teacher_forced_byte_accuracy': ('teacher-forced', '{:.1%}', max),
  'free_running_byte_accuracy': ('free-running', '{:.1%}', max),
}
_TOTAL = (
  'code_unigram_bits_per_byte',
  'expander_bits_per_byte',
  'end_bits_per_byte',
)

_HEAD = """# Segmentation rules, quantizers and contexts compared

    {command}

Hardware: {hardware}.

Each row is one small level, `configs/compare.py`, trained for a few hundred
steps on the default corpus. They differ in nothing but the three settings
named; every rule is calibrated to 4.5 bytes a segment of the training text,
every quantizer has 1024 codes. Figures are of held-out documents.

"Codes" is what the codes cost under their own frequencies in the held-out text:
with the rest it adds up to an estimate of the bits per byte of the whole, no
bound, but fairer to cells of different rates than the expander's part alone.
Accuracies are of bytes: given the true ones before them, and decoded from the
codes alone. Small and short as the runs are, differences of a hundredth mean
nothing.
"""


def cells() -> list[tuple[str, str, str]]:
  """Rule, quantizer and context of every cell."""
  return list(itertools.product(get_args(Rule), get_args(Kind), _CELL_CONTEXTS))


def train(workdir: pathlib.Path, cell: tuple[str, str, str]) -> None:
  """Trains a cell unless it is done."""
  if (workdir / 'metrics.jsonl').exists() and final(workdir) is not None:
    return
  command = [
    sys.executable,
    'train.py',
    f'--config=configs/compare.py:{",".join(cell)}',
    f'--workdir={workdir}',
  ]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def final(workdir: pathlib.Path) -> dict[str, float] | None:
  """Metrics of the last evaluation; None if there was none."""
  found = None
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    tags = json.loads(line)
    if 'eval/loss_total' in tags:
      found = tags
  if found is None:
    return None
  values = {
    name.removeprefix('eval/'): value
    for name, value in found.items()
    if name.startswith('eval/')
  }
  return values | {'total': sum(values[name] for name in _TOTAL)}


def table(results: dict[tuple[str, str, str], dict[str, float]]) -> str:
  """The results as Markdown; the best of a column is bold."""
  heads = ['rule', 'quantizer', 'context', *(c[0] for c in _COLUMNS.values())]
  lines = ['| ' + ' | '.join(heads) + ' |', '|---' * len(heads) + '|']
  best = {
    name: better(values[name] for values in results.values())
    for name, (_, _, better) in _COLUMNS.items()
    if better is not None
  }
  for cell, values in results.items():
    texts = [
      f'**{form.format(values[name])}**'
      if values[name] == best.get(name)
      else form.format(values[name])
      for name, (_, form, _) in _COLUMNS.items()
    ]
    lines.append('| ' + ' | '.join([*cell, *texts]) + ' |')
  return '\n'.join(lines)


def main() -> None:
  """Trains what is not done yet, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--runs', default='runs/compare')
  parser.add_argument('--jobs', type=int, default=1, help='cells at once')
  parser.add_argument('--output', help='Markdown file; the table is printed')
  args = parser.parse_args()
  options = f'--jobs={args.jobs} --output={args.output}'
  workdirs = {cell: pathlib.Path(args.runs, '-'.join(cell)) for cell in cells()}
  with futures.ThreadPoolExecutor(args.jobs) as pool:
    # As a list, so that an error in a cell is raised.
    list(pool.map(train, workdirs.values(), workdirs))
  results = {cell: final(workdir) for cell, workdir in workdirs.items()}
  text = table(results)
  print(text)
  if args.output:
    command = f'python -m abstractinator.benchmarks.compare {options}'
    hardware = (
      f'{os.cpu_count()} cores, {platform.processor() or platform.machine()},'
      f' jax {jax.__version__}'
    )
    head = _HEAD.format(command=command, hardware=hardware)
    pathlib.Path(args.output).write_text(f'{head}\n{text}\n')


if __name__ == '__main__':
  main()
