"""Figures as text, with their units."""

from collections.abc import Mapping

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
