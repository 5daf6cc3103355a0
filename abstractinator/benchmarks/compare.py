"""Every segmentation rule with every quantizer and expander context.

    python -m abstractinator.benchmarks.compare

Run it from the repository: each cell is trained by `python train.py
--config=configs/compare.py:RULE,QUANTIZER,CONTEXT` into
`runs/compare/RULE-QUANTIZER-CONTEXT`. Cells that are done are not trained
again: remove their directories when settings have changed. The printed table is
that of docs/results.md, which explains its columns.
"""

import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import get_args

from abstractinator.benchmarks import timing
from abstractinator.config.quantizer import QuantizerKind
from abstractinator.config.segmentation import SegmentationRule

Cell = tuple[str, str, str]
_HEADINGS = ('rule', 'quantizer', 'context')

# Heading, format, and which value of a metric is better, if any.
_COLUMNS = {
  'bytes_per_segment': ('bytes/segment', '.2f', None),
  'code_unigram_bits_per_byte': ('codes', '.3f', None),
  'expander_bits_per_byte': ('bytes given codes', '.3f', None),
  'end_bits_per_byte': ('ends', '.3f', None),
  'total': ('sum, bits/byte', '.3f', min),
  'live_code_fraction': ('live codes', '.0%', None),
  'teacher_forced_byte_accuracy': ('teacher-forced', '.1%', max),
  'free_running_byte_accuracy': ('free-running', '.1%', max),
}
_SUMMED = (
  'code_unigram_bits_per_byte',
  'expander_bits_per_byte',
  'end_bits_per_byte',
)


def cells() -> list[Cell]:
  """Returns rule, quantizer and context of every cell."""
  contexts = ('segment', 'window')
  rules, kinds = get_args(SegmentationRule), get_args(QuantizerKind)
  return list(itertools.product(rules, kinds, contexts))


def result(workdir: pathlib.Path, cell: Cell) -> dict[str, float]:
  """Trains a cell unless it is done; returns metrics of its last evaluation."""
  values = last_evaluation(workdir / 'metrics.jsonl')
  if values is None:
    config = f'--config=configs/compare.py:{",".join(cell)}'
    command = [sys.executable, 'train.py', config, f'--workdir={workdir}']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    values = last_evaluation(workdir / 'metrics.jsonl')
  if values is None:
    raise ValueError(f'{workdir}: has no evaluation after training')
  return values


def last_evaluation(path: pathlib.Path) -> dict[str, float] | None:
  """Returns the last evaluation in a `metrics.jsonl`; None if there is none."""
  lines = path.read_text().splitlines() if path.exists() else []
  for line in reversed(lines):
    tags = json.loads(line)
    if 'eval/loss_total' in tags:
      values = {name.removeprefix('eval/'): x for name, x in tags.items()}
      return values | {'total': sum(values[name] for name in _SUMMED)}
  return None


def rows(
  results: Mapping[Cell, Mapping[str, float]],
) -> list[dict[str, object]]:
  """Returns a row for each cell; the best of a column is bold."""
  found = []
  for cell, values in results.items():
    row: dict[str, object] = dict(zip(_HEADINGS, cell, strict=True))
    for name, (heading, form, better) in _COLUMNS.items():
      text = format(values[name], form)
      best = better and better(x[name] for x in results.values())
      row[heading] = f'**{text}**' if values[name] == best else text
    found.append(row)
  return found


def main(argv: Sequence[str]) -> None:
  """Trains what is not done yet, and prints the table."""
  parser = timing.make_parser('compare', __doc__)
  parser.add_argument('--runs', default='runs/compare')
  parser.add_argument('--jobs', type=timing.positive, default=1)
  args = parser.parse_args(argv)
  workdirs = {cell: pathlib.Path(args.runs, '-'.join(cell)) for cell in cells()}
  with futures.ThreadPoolExecutor(args.jobs) as pool:
    results = list(pool.map(result, workdirs.values(), workdirs))
  report = timing.Report(parser.prog, argv, args.json)
  report.add(rows(dict(zip(workdirs, results, strict=True))))


if __name__ == '__main__':
  main(sys.argv[1:])
