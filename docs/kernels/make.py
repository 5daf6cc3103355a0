"""Generator of the tables of `docs/kernels.md`, between its HTML comments.

    python docs/kernels/make.py

Limits are read from the tables of `ops.implementation`. Measurements are read
from the `*.jsonl` files beside this one. Each file is one run of `python -m
abstractinator.benchmarks.ops --json=FILE`; a `note` about the run is added to
its lines by hand.
"""

import importlib
import itertools
import json
import pathlib

from abstractinator.benchmarks import timing
from abstractinator.config import ImplementationConfig
from abstractinator.ops.implementation import OPS, resolve_implementations
from abstractinator.ops.support import PLATFORMS, Implementation

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / 'kernels.md'
# Fields of a row that say how it was measured, equal in all rows of a run.
_ABOUT = ('command', 'device', 'jax', 'note')


def limits() -> str:
  """Returns a section for each op: platforms, types, cost and notes.

  A section begins with the first line of the docstring of the op's module.
  """
  sections = []
  for op, support in sorted(OPS.items()):
    module = importlib.import_module(f'abstractinator.ops.{op}')
    summary = module.__doc__.splitlines()[0]
    rows = [
      {'implementation': f'`{name}`'}
      | {platform: _cell(op, name, s, platform) for platform in PLATFORMS}
      | {
        'types': ', '.join(s.dtypes),
        'reproducible on': ', '.join(
          p for p in s.platforms if p in s.is_reproducible_on
        ),
        'cost': s.cost,
      }
      for name, s in support.items()
    ]
    notes = '\n'.join(f'- `{name}`: {s.note}.' for name, s in support.items())
    sections += [f'## `{op}`', summary, timing.markdown(rows), notes]
  return '\n\n'.join(sections)


def _cell(op: str, name: str, support: Implementation, platform: str) -> str:
  """Returns '' for an unsupported platform; '**auto**' if auto selects it."""
  if platform not in support.platforms:
    return ''
  settings = ImplementationConfig.everywhere('auto')
  automatic = resolve_implementations(settings, platform)
  return '**auto**' if getattr(automatic, op) == name else 'yes'


def measurements(directory: pathlib.Path) -> str:
  """Returns a section for each run; a table is consecutive rows of equal keys.

  Args:
    directory: Directory of `*.jsonl` files, one run each.

  Raises:
    ValueError: If a file has lines of several runs.
  """
  sections = []
  for path in sorted(directory.glob('*.jsonl')):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    runs = {tuple(row.pop(key, '') for key in _ABOUT) for row in rows}
    if len(runs) != 1:
      raise ValueError(
        f'{path}: got lines of {len(runs)} runs, allowed: 1 (delete the file'
        ' before the benchmark writes it again)'
      )
    ((command, device, jax_version, note),) = runs
    hardware = f'Hardware: {device}, jax {jax_version}. {note}'.strip()
    sections += [f'### {path.stem}', f'    {command}', hardware]
    for _, group in itertools.groupby(rows, list):
      sections.append(timing.markdown(list(group)))
  return '\n\n'.join(sections)


def document(text: str) -> str:
  """Returns the text of the page with its tables generated again.

  Args:
    text: Text of the page, with its HTML comments.
  """
  parts = {'limits': limits(), 'measurements': measurements(HERE)}
  for name, part in parts.items():
    begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    text = f'{before}{begin}\n\n{part}\n\n{end}{after}'
  return text


if __name__ == '__main__':
  PAGE.write_text(document(PAGE.read_text()))
