"""Writes `docs/kernels.md`: what computes the ops, where, and how fast.

    python -m abstractinator.benchmarks.kernels

Limits are read from the `support` module of each op, measurements from what the
benchmarks of ops recorded, `--json=docs/kernels/NAME.jsonl`, a file a run; to
the lines of a run that was cut short a `note` is added by hand.
"""

import importlib
import itertools
import json
import pathlib
import pkgutil
from collections.abc import Iterator, Mapping

from abstractinator import ops
from abstractinator.benchmarks import table
from abstractinator.ops.implementation import resolve_implementations
from abstractinator.ops.support import PLATFORMS, Support

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
_YES, _NO, _AUTO = 'yes', '', '**auto**'
_ABOUT = ('command', 'device', 'jax', 'note')

_HEAD = """\
# Kernels

    python -m abstractinator.benchmarks.kernels

An op has several implementations with one contract. `model.implementation`
names one for each; `auto` stands for that of the platform of the mesh that is
marked so. The choice is logged, and none falls back to another: what one cannot
take is an error that names the limit.
"""

_TABLES = """\
## Measurements

Each implementation is held to `reference` first. All take turns in one run, a
call each, with the machine's own matrix product and copy. Times are medians;
`both` is forward and backward, `x` the factor against `reference` in the same
run, `MiB` temporary memory, `error` the largest of values and gradients, of the
largest number of `reference`. `GFLOP` and `MB` are what the forward pass must
compute and move, `roofline` is the time in which the machine's own product and
copy would do that, over the time taken. An id is a byte or a code of a row.
"""


def supports() -> Iterator[tuple[str, str, Mapping[str, Support]]]:
  """Name, one line about it, and implementations of each op that has them."""
  for module in pkgutil.iter_modules(ops.__path__):
    if not module.ispkg:
      continue
    name = f'{ops.__name__}.{module.name}'
    about = importlib.import_module(name).__doc__.strip().splitlines()[0]
    support = importlib.import_module(f'{name}.support').SUPPORT
    yield module.name, about, support


def limits() -> str:
  """A section an op."""
  sections = []
  for op, about, support in supports():
    rows = [
      {'implementation': f'`{name}`'}
      | {platform: _cell(op, name, s, platform) for platform in PLATFORMS}
      | {
        'types': ', '.join(s.dtypes),
        'same bits twice': ', '.join(
          p for p in s.platforms if p in s.is_reproducible_on
        ),
        'cost': s.cost,
      }
      for name, s in support.items()
    ]
    notes = [f'- `{name}`: {s.note}.' for name, s in support.items()]
    sections.append(
      '\n\n'.join((f'## `{op}`', about, table.markdown(rows), '\n'.join(notes)))
    )
  return '\n\n'.join(sections)


def _cell(op, name, support, platform):
  if platform not in support.platforms:
    return _NO
  automatic = resolve_implementations(*['auto'] * 4, platform=platform)
  return _AUTO if getattr(automatic, op) == name else _YES


def measurements(directory: pathlib.Path) -> str:
  """A section a run, its tables told apart by their columns.

  Args:
    directory: Of JSON lines, a file a run.

  Returns:
    Markdown.

  Raises:
    ValueError: If a file is not of one run.
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
    tables = [
      table.markdown(list(group)) for _, group in itertools.groupby(rows, list)
    ]
    sections += [
      f'### {path.stem}',
      f'    {command}',
      f'Hardware: {device}, jax {jax_version}. {note}'.strip(),
      *tables,
    ]
  return '\n\n'.join(sections)


def document() -> str:
  """The whole of `docs/kernels.md`."""
  return '\n'.join(
    (_HEAD, limits(), '', _TABLES, measurements(DOCS / 'kernels'), '')
  )


def main() -> None:
  """Writes the file."""
  (DOCS / 'kernels.md').write_text(document())


if __name__ == '__main__':
  main()
