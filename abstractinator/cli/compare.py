"""Command `abstractinator compare`.

`python -m abstractinator.benchmarks.compare` is another thing: it trains a flat
model beside a config.
"""

import argparse
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from abstractinator.cli import common
from abstractinator.evaluation import units
from abstractinator.runs import hub, metric_lines
from abstractinator.runs import workdir as workdirs

EXAMPLE = 'abstractinator compare runs/a runs/b --csv=runs.csv'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator compare`."""
  parser.add_argument(
    'runs',
    nargs='+',
    metavar='RUN',
    type=os.path.expanduser,
    help='directories of trained runs or of exported models, or hf:NAME for'
    ' models on the Hugging Face Hub, at least two; to train a flat model'
    ' beside a config there is python -m abstractinator.benchmarks.compare',
  )
  parser.add_argument(
    '--csv',
    metavar='FILE',
    type=os.path.expanduser,
    help='CSV file to write, with all held-out figures and the settings that'
    ' differ, a line for each run; default: none',
  )
  common.add(parser, '--force', '--json')


def run(args: argparse.Namespace) -> str:
  """Prints final figures of runs side by side, and settings that differ."""
  if len(set(args.runs)) < max(len(args.runs), 2):
    raise ValueError(
      f'RUN: got {" ".join(args.runs)}, allowed: at least two different ones'
    )
  if args.csv is not None:
    common.require_new(args.csv, force=args.force)
  runs = list(map(_read, args.runs))
  changed = dict(differences('', [run.config for run in runs]))
  rows = [
    {'run': run.workdir, 'step': run.step, 'minutes': run.minutes}
    | run.figures
    | {
      f'config.{path}': values[number]
      for path, values in changed.items()
      if values[number] is not ABSENT
    }
    for number, run in enumerate(runs)
  ]
  if args.csv is not None:
    common.write_new(args.csv, _csv(rows), force=args.force)
  return common.answer(args, rows, _text(runs, changed))


class _Run(NamedTuple):
  """Config of a run, and figures of its last evaluation.

  Attributes:
    workdir: Directory of the run.
    config: JSON values of its config.
    step: Step of the last evaluation.
    minutes: Time of training until then.
    figures: Held-out figures by name, None for one that is not finite. Those of
      the first level have no prefix, so that runs of one level and of several
      have the same names.
  """

  workdir: str
  config: dict[str, Any]
  step: int
  minutes: float
  figures: dict[str, float | None]


def _read(workdir: str) -> _Run:
  """Reads a run.

  Raises:
    ValueError: If there is no run, its files are damaged, or it has not
      evaluated yet.
  """
  directory = hub.directory_of(workdir)
  config = workdirs.stored_config(directory)
  if config is None:
    raise ValueError(
      f'{workdir}: has no config.json, allowed: the directory of a run'
    )
  lines = metric_lines.read(directory)
  evaluated = [x for x in lines if any(k.startswith('eval/') for k in x)]
  if not evaluated:
    raise ValueError(
      f'{metric_lines.path_of(directory)}: has no held-out figures, allowed: a'
      ' run that has reached its eval_interval'
    )
  step = evaluated[-1]['step']
  return _Run(
    workdir,
    config.to_dict(),
    step,
    metric_lines.minutes(x for x in lines if x['step'] <= step),
    {
      tag.removeprefix('eval/').removeprefix('level0/'): value
      for tag, value in evaluated[-1].items()
      if tag.startswith('eval/')
    },
  )


# Stands for a setting that a config does not have.
ABSENT = object()


def differences(
  path: str, values: Sequence[Any]
) -> Iterator[tuple[str, Sequence[Any]]]:
  """Yields the settings in which configs differ.

  A group that one of the configs does not have is not divided further.

  Args:
    path: Path of a part of the configs, '' for the whole.
    values: JSON values of that part, one for each config.

  Yields:
    A path and its values, `ABSENT` for a config that has no such path.
  """
  if all(isinstance(value, list | tuple) for value in values):
    values = [{f'[{i}]': x for i, x in enumerate(value)} for value in values]
  elif path:
    path += '.'
  if all(isinstance(value, dict) for value in values):
    for name in dict.fromkeys(name for value in values for name in value):
      members = [value.get(name, ABSENT) for value in values]
      yield from differences(path + name, members)
  elif any(value != values[0] for value in values):
    yield path.removesuffix('.'), values


def _text(runs: Sequence[_Run], changed: Mapping[str, Sequence[Any]]) -> str:
  """Returns a table of figures and one of settings."""
  names = dict.fromkeys(name for run in runs for name in run.figures)
  rows = [
    ['', *(run.workdir for run in runs)],
    ['step', *(f'{run.step:,}' for run in runs)],
    ['time of training', *(f'{run.minutes:.1f}' for run in runs)],
  ]
  last = ['', '', 'minutes']
  for name, label in units.labels(names).items():
    cells = [_cell(name, run.figures.get(name, ABSENT)) for run in runs]
    rows.append([label, *(number for number, _ in cells)])
    last.append(max(unit for _, unit in cells))
  lines = [
    f'{line}  {unit}'.rstrip()
    for line, unit in zip(units.columns(rows), last, strict=True)
  ]
  settings = [[path, *map(_short, values)] for path, values in changed.items()]
  found = units.columns(settings) or ['none']
  return '\n'.join([*lines, '', 'settings that differ:', *found])


def _cell(name: str, value: Any) -> tuple[str, str]:
  """Returns a figure as text, and its unit."""
  if value is ABSENT:
    return '-', ''
  if value is None:
    return 'not finite', ''
  number, _, unit = units.with_unit(name, float(value)).partition(' ')
  return number, unit


def _short(value: Any) -> str:
  """Returns a setting as text; a group of settings is not written out."""
  if value is ABSENT:
    return '-'
  return (
    '{...}' if isinstance(value, dict | list | tuple) else json.dumps(value)
  )


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
  """Returns rows as CSV, with the columns of all of them."""
  file = io.StringIO()
  columns = dict.fromkeys(name for row in rows for name in row)
  writer = csv.DictWriter(file, columns, lineterminator='\n')
  writer.writeheader()
  for row in rows:
    writer.writerow(
      {k: x if isinstance(x, str) else json.dumps(x) for k, x in row.items()}
    )
  return file.getvalue().encode('utf-8', 'backslashreplace')
