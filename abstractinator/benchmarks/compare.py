"""A hierarchy's honest cost beside a flat model's of the same training FLOPs.

    python -m abstractinator.benchmarks.compare default
    python -m abstractinator.benchmarks.compare tiny tiny_2level --seeds=3 \
      --set data.train=TRAIN --set data.validation=HELD_OUT
    python -m abstractinator.benchmarks.compare \
      compare:{stride,space},{vq,rvq,fsq},{segment,window}

Run it from the repository. Each config is trained, and beside it a flat model:
the byte model of `configs/flat.py`, so large that a step takes as many FLOPs as
all parts of the hierarchy together, on the same data, by the same optimizer, in
as many steps. Its name has its layers, width and hidden width. Runs lie in
`RUNS/NAME-CHECKSUM-SEED`; those that are done are not trained again.

All costs are bits per held-out byte as `abstractinator evaluate` measures them.
Codes cost what a discrete top LM charges, else what an adaptive unigram does.
Codes, bytes given codes and ends, of all levels, add up to the total. "over
flat" is the total over that of the flat model; "entropy model" is the cost
under the hierarchy's own model of bytes; "bytes right" is the fraction of bytes
that comes back from the top codes alone. The last table has programs without a
model that have read the training text; see `benchmarks.primed`.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from abstractinator.benchmarks import primed, timing
from abstractinator.benchmarks.flat_model import flat_config
from abstractinator.benchmarks.step import sizes
from abstractinator.cli import config_file
from abstractinator.cli.evaluate import open_documents
from abstractinator.config import RunConfig
from abstractinator.evaluation.evaluate import evaluate
from abstractinator.evaluation.evaluator import open_run
from abstractinator.runs import allocator, metric_lines, processes, workdir
from abstractinator.training.loop import Run

Row = dict[str, Any]


def train(config: RunConfig, runs: pathlib.Path, name: str) -> pathlib.Path:
  """Trains a run, or what is left of it; returns its directory.

  The name of the directory has a checksum of the config, so that runs of other
  settings do not meet in it.
  """
  text = json.dumps(config.to_dict() | {'seed': 0}, sort_keys=True)
  checksum = hashlib.sha256(text.encode()).hexdigest()[:8]
  path = runs / f'{name.replace("/", "_")}-{checksum}-{config.seed}'
  workdir.check(str(path), config)
  run = Run(config, str(path))
  state = run.start()
  workdir.claim(str(path), config)
  run.train(state)
  return path


def costs(
  path: pathlib.Path, max_documents: int | None, decode: bool
) -> dict[str, float]:
  """Measures a run on what it held out; returns the columns of its row."""
  evaluator = open_run(str(path))
  passages = open_documents(evaluator.config.data, None, max_documents)
  found = evaluate(evaluator, passages, decode=decode)
  of_bytes = float(found.levels[0]['entropy_model_bits_per_byte'])
  if not evaluator.has_codes:
    return {'total': of_bytes}

  def summed(name: str) -> float:
    return sum(float(level[name]) for level in found.levels)

  columns = {
    'entropy model': of_bytes,
    'codes': float(found.whole['code_bits_per_byte']),
    'bytes given codes': summed('expander_bits_per_byte'),
    'ends': summed('end_bits_per_byte'),
    'total': float(found.whole['total_bits_per_byte']),
    'bytes/code': float(found.levels[-1]['bytes_per_segment']),
    'live codes': float(found.levels[-1]['live_code_fraction']),
  }
  if 'free_running_byte_accuracy' in found.whole:
    columns['bytes right'] = float(found.whole['free_running_byte_accuracy'])
  return columns


@functools.cache
def measured(
  name: str,
  config: RunConfig,
  runs: pathlib.Path,
  max_documents: int | None,
  decode: bool,
) -> Row:
  """Trains and measures a run; returns its row."""
  path = train(config, runs, name)
  size, data = sizes(config), config.data
  row = {'model': name, 'seed': config.seed, 'parameters': size['parameters']}
  ids = data.batch_size * data.sequence_length
  row |= {'kFLOP/byte': size['FLOP a step'] // (1000 * ids)}
  row |= {'minutes': metric_lines.minutes(metric_lines.read(path))}
  return row | costs(path, max_documents, decode)


def summaries(rows: Sequence[Row]) -> list[Row]:
  """Returns mean and spread, largest minus smallest, of each model's seeds."""
  found = []
  for model in dict.fromkeys(row['model'] for row in rows):
    seeds = [row for row in rows if row['model'] == model]
    for name, summary in (
      ('mean', statistics.fmean),
      ('spread', lambda values: max(values) - min(values)),
    ):
      of_model: Row = {'model': model, 'seed': name}
      for column in seeds[0]:
        if column not in of_model:
          of_model[column] = summary([row[column] for row in seeds])
      found.append(of_model)
  return found


def main(argv: Sequence[str]) -> None:
  """Trains what is not done yet, and prints the tables."""
  parser = timing.make_parser('compare', __doc__)
  parser.add_argument('config', nargs='+', help='configs of hierarchies')
  config_file.add_overrides(parser)
  parser.add_argument('--runs', type=pathlib.Path, default='runs/compare')
  about = 'number of seeds, from that of the config on'
  parser.add_argument('--seeds', type=timing.positive, default=1, help=about)
  about = 'number of held-out documents to measure on; default: all'
  parser.add_argument('--max_documents', type=timing.positive, help=about)
  about = 'leave out the bytes right, the slowest part'
  parser.add_argument(
    '--no_decode', dest='decode', action='store_false', help=about
  )
  args = parser.parse_args(argv)
  measure = functools.partial(
    measured,
    runs=args.runs,
    max_documents=args.max_documents,
    decode=args.decode,
  )
  rows: list[Row] = []
  try:
    configs = {name: config_file.load(name, args.set) for name in args.config}
    corpora = {_corpus(config) for config in configs.values()}
    if len(corpora) > 1:
      raise ValueError(
        f'config: got {", ".join(configs)}, allowed: configs of the same data'
      )
    report = timing.Report(parser.prog, argv, args.json)
    for name, config in configs.items():
      flat_name, flat = flat_config(config)
      for seed in range(config.seed, config.seed + args.seeds):
        base = measure(flat_name, dataclasses.replace(flat, seed=seed))
        row = measure(name, dataclasses.replace(config, seed=seed))
        rows += [] if base in rows else [base]
        ratios = {
          'over flat': row['total'] / base['total'],
          'FLOPs over flat': row['kFLOP/byte'] / base['kFLOP/byte'],
        }
        rows.append(row | ratios)
    bits = primed.of_data(config.data, args.max_documents)
  except processes.REFUSALS as error:
    parser.error(str(error))
  report.add(rows, decimals=3)
  if args.seeds > 1:
    report.add(summaries(rows), decimals=3)
  report.add([{'by': by, 'total': cost} for by, cost in bits.items()], 3)


def _corpus(config: RunConfig) -> tuple[str, str, float]:
  data = config.data
  return data.train, data.validation, data.validation_fraction


if __name__ == '__main__':
  allocator.keep_memory()
  main(sys.argv[1:])
