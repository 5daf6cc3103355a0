"""Figures as text, with their labels, units and meanings."""

import importlib.resources
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Meaning(NamedTuple):
  """Meaning of a figure.

  Attributes:
    unit: Unit, '' for a number without one.
    about: Description, in Markdown.
  """

  unit: str
  about: str


def _read() -> dict[str, dict[str, Meaning]]:
  source = importlib.resources.files('abstractinator.evaluation')
  text = (source / 'meanings.toml').read_text(encoding='utf-8')
  return {
    group: {name: Meaning(*pair) for name, pair in members.items()}
    for group, members in tomllib.loads(text).items()
  }


# The meaning of each figure, by group and by the last part of its name.
MEANINGS = _read()
_BY_NAME = {k: x for members in MEANINGS.values() for k, x in members.items()}
# Formats of values, by unit.
_FORMATS = {
  'bits/byte': '{:.3f} bits/byte',
  'bits/code': '{:.3f} bits/code',
  'bytes/segment': '{:.2f} bytes/segment',
  'ids/segment': '{:.2f} ids/segment',
  'codes': '{:.1f} codes',
  'bits': '{:.2f} bits',
  'bytes': '{:.1f} bytes',
  'fraction': '{:.2%}',
  'x the entropy model': '{:.3f} x the entropy model',
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

# Figures that matter most; a run has five of them at most.
_FIRST = (
  *('total_bits_per_byte', 'entropy_model_bits_per_byte'),
  *('expander_bits_per_byte', 'top_lm_code_bits_per_byte'),
  *('free_running_byte_accuracy', *_OF_CODES),
)


def first(tags: Collection[str]) -> dict[str, str]:
  """Returns titles of the figures that matter most, by the end of their tags.

  Args:
    tags: Tags of the figures that there are, such as
      'eval/level0/entropy_model_bits_per_byte'.
  """
  found = labels({tag.rpartition('/')[2] for tag in tags})
  return {
    name: f'{found[name]}, {_BY_NAME[name].unit}'
    for name in _FIRST
    if name in found
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
  """Returns a figure with its unit.

  Args:
    name: Name of the metric, such as 'total_bits_per_byte'.
    value: Its value. Integers are counts.
  """
  if isinstance(value, str):
    return value
  if isinstance(value, int):
    return f'{value:,}'
  meaning = _BY_NAME.get(name.rpartition('/')[2])
  unit = meaning.unit if meaning else ''
  return _FORMATS.get(unit, '{:.4f}').format(value)


def describe(tag: str) -> str:
  """Returns what a scalar of a run means, in Markdown; '' for an unknown one.

  Args:
    tag: Name of the scalar in the metric files, such as
      'eval/level0/bytes_per_segment'.
  """
  place, _, name = tag.rpartition('/')
  meaning = _BY_NAME.get(name)
  if meaning is None:
    return ''
  unit = f' ({meaning.unit})' if meaning.unit else ''
  where = {
    'train': '; mean of the training steps since the last line of the log',
    'eval': '; held-out text',
  }.get(place.partition('/')[0], '')
  return meaning.about + unit + where


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
