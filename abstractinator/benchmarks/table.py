"""Rows of measurements as a table to read and as lines of JSON."""

import json
from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
  """Lays rows out under the keys of all of them, in order of appearance.

  Args:
    rows: A mapping a row. Floats get three digits; what a row lacks, or is
      None, stays empty.

  Returns:
    A Markdown table whose columns line up, without a newline at the end.
  """
  names = list(dict.fromkeys(name for row in rows for name in row))
  cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  is_number = [
    all(isinstance(row.get(name), int | float | None) for row in rows)
    for name in names
  ]
  lines = [
    ' | '.join(
      cell.rjust(width) if right else cell.ljust(width)
      for cell, width, right in zip(line, widths, is_number, strict=True)
    )
    for line in cells
  ]
  rule = ' | '.join(
    '-' * (width - 1) + (':' if right else '-')
    for width, right in zip(widths, is_number, strict=True)
  )
  lines.insert(1, rule)
  return '\n'.join(f'| {line} |' for line in lines)


def json_lines(rows: Sequence[Mapping[str, object]]) -> str:
  """One JSON object a row, without a newline at the end."""
  return '\n'.join(json.dumps(dict(row)) for row in rows)


def _cell(value: object) -> str:
  if value is None:
    return ''
  if isinstance(value, float):
    text = f'{value:.3g}'
    return f'{value:.0f}' if 'e+' in text else text
  return str(value)
