"""Figures as text, with their labels and units."""

import re
from collections.abc import Collection, Mapping, Sequence

# Parts of names, of which the first that a name has decides its unit, and the
# formats of values.
_FORMATS = {
  'bits_per_byte': '{:.3f} bits/byte',
  'bits_per_code': '{:.3f} bits/code',
  'bytes_per_segment': '{:.2f} bytes/segment',
  'ids_per_segment': '{:.2f} ids/segment',
  'perplexity': '{:.1f} codes',
  '_bits': '{:.2f} bits',
  'fraction': '{:.2%}',
  'efficiency': '{:.2%}',
  'over_flat': '{:.3f} x the entropy model',
  'accuracy': '{:.2%}',
  'precision': '{:.2%}',
  'recall': '{:.2%}',
  'f1': '{:.2%}',
}

# Labels of the most important figures, in the order in which they are shown.
_OF_WHOLE = {
  'total_bits_per_byte': 'total',
  'total_over_flat': 'total, over the entropy model',
  'code_efficiency': 'saved by codes, of what they cost',
  'top_lm_code_bits_per_byte': 'codes',
  'top_lm_end_bits_per_byte': 'ends of documents',
  'free_running_byte_accuracy': 'bytes right, from codes alone',
}
# Those of a run that reads codes, without bytes.
_OF_CODES = {
  'top_lm_code_bits_per_code': 'top LM',
  'top_lm_code_accuracy': 'codes right',
}
_OF_LEVEL = {
  'entropy_model_bits_per_byte': 'entropy model',
  'entropy_model_byte_accuracy': 'bytes right',
  'expander_bits_per_byte': 'expander, given codes',
  'end_bits_per_byte': 'ends of segments',
  'teacher_forced_byte_accuracy': 'bytes right, teacher-forced',
  'teacher_forced_code_accuracy': 'codes right, teacher-forced',
  'bytes_per_segment': 'length of segments',
  'live_code_fraction': 'codes in use',
}


def labels(names: Collection[str]) -> dict[str, str]:
  """Returns the labels of the most important figures, in the order to show.

  Args:
    names: Names of figures, those of a level or of a stage of its codes below
      `level0/`, `stage0/` or both.

  Returns:
    Labels by name.
  """
  has_levels = any(name.rpartition('/')[2] in _OF_LEVEL for name in names)
  known = (_OF_WHOLE if has_levels else _OF_CODES) | _OF_LEVEL
  found = {}
  for place in sorted({name.rpartition('/')[0] for name in names}):
    parts = re.fullmatch(r'(?:(level\d+)/?)?(stage\d+)?', place)
    if parts is None:
      continue
    level, stage = parts.groups()
    for last, label in known.items():
      name = f'{place}/{last}' if place else last
      if name in names:
        label = f'{label}, {stage}' if stage else label
        found[name] = f'{level}: {label}' if level else label
  return found


def figures(values: Mapping[str, float]) -> dict[str, str]:
  """Returns the most important figures by label, with their units.

  Args:
    values: Figures by name; see `labels`.
  """
  return {
    label: with_unit(name, values[name])
    for name, label in labels(values.keys()).items()
  }


def with_unit(name: str, value: float | str) -> str:
  """Returns a figure with the unit that its name implies.

  Args:
    name: Name of the metric, such as 'total_bits_per_byte'.
    value: Its value. Integers are counts.
  """
  if isinstance(value, str):
    return value
  if isinstance(value, int):
    return f'{value:,}'
  for part, text in _FORMATS.items():
    if part in name:
      return text.format(value)
  return f'{value:.4f}'


def table(rows: Mapping[str, str], indent: str = '') -> list[str]:
  """Returns lines of labels and values, the values below each other.

  Args:
    rows: Values by label.
    indent: Text before each line.
  """
  width = max(map(len, rows), default=0)
  return [f'{indent}{label:{width}}  {value}' for label, value in rows.items()]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns lines of one length: labels, and values that end below each other.

  Args:
    rows: A label and values, as many in each row.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for label, *values in rows:
    pairs = zip(values, widths[1:], strict=True)
    cells = [label.ljust(widths[0]), *(x.rjust(width) for x, width in pairs)]
    lines.append('  '.join(cells))
  return lines
