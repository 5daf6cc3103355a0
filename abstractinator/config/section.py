"""Base class of the sections of a config: dataclasses read from plain values.

Every error is one line: the path of the setting, its value, what is allowed.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self


@dataclasses.dataclass(frozen=True)
class Section:
  """A group of settings: typed fields without defaults, checked when built."""

  @classmethod
  def from_dict(cls, values: Mapping[str, Any], path: str = '') -> Self:
    """Builds a section from plain values.

    Args:
      values: Value of each field of the section; a nested section is a mapping.
      path: Path of the section in the whole config, for error messages.

    Returns:
      The section.

    Raises:
      ValueError: If a setting is unknown or missing, or its value is of another
        type or not allowed.
    """
    prefix = f'{path}.' if path else ''
    is_group = isinstance(values, Mapping)
    _require(is_group, path or 'config', values, 'a group of settings')
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    for key in values:
      if key not in fields:
        near = difflib.get_close_matches(key, fields, n=2) or list(fields)
        raise ValueError(
          f'{prefix}{key}: unknown setting, allowed: {", ".join(near)}'
        )
    missing = [prefix + name for name in fields if name not in values]
    if missing:
      raise ValueError(f'missing settings: {", ".join(missing)}')
    converted = {
      name: _convert(annotation, values[name], prefix + name)
      for name, annotation in fields.items()
    }
    try:
      return cls(**converted)
    except ValueError as error:
      # A section checks itself without knowing its path in the whole config.
      raise ValueError(f'{prefix}{error}') from None

  def to_dict(self) -> dict[str, Any]:
    """Returns plain nested values, ready for JSON."""
    return dataclasses.asdict(self)

  def require(self, ok: bool, path: str, allowed: str) -> None:
    """Raises ValueError about a setting, unless `ok`.

    Args:
      ok: Whether the value of the setting is allowed.
      path: Path of the setting below this section, such as `levels[0].freeze`.
      allowed: Description of the values that are allowed.
    """
    if not ok:
      value: Any = self
      for name in re.findall(r'\w+', path):
        value = value[int(name)] if name.isdigit() else getattr(value, name)
      _require(ok, path, value, allowed)

  def require_positive(self, *names: str) -> None:
    """Requires fields above 0; None passes where its type allows it."""
    for name in names:
      value = getattr(self, name)
      self.require(value is None or value > 0, name, 'a positive number')

  def require_non_negative(self, *names: str) -> None:
    """Requires fields of 0 or above."""
    for name in names:
      self.require(getattr(self, name) >= 0, name, '>= 0')

  def require_fraction(self, *names: str) -> None:
    """Requires fields in 0 <= value < 1."""
    for name in names:
      self.require(0 <= getattr(self, name) < 1, name, '0 <= value < 1')


def _require(ok: bool, path: str, value: Any, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{path}: got {value!r}, allowed: {allowed}')


def _convert(annotation: Any, value: Any, path: str) -> Any:
  """Returns a plain value as the type of its field; ValueError names `path`."""
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    (annotation,) = [a for a in args if a is not type(None)]
    return _convert(annotation, value, path)
  if origin is Literal:
    _require(value in args, path, value, ', '.join(map(str, args)))
    return value
  if origin is tuple:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    _require(is_list, path, value, 'a list')
    return tuple(
      _convert(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)
    )
  if issubclass(annotation, Section):
    return annotation.from_dict(value, path)
  if annotation is float and type(value) is int:
    return float(value)
  is_typed = type(value) is annotation
  _require(is_typed, path, value, f'a value of {annotation.__name__}')
  if annotation is float:
    _require(math.isfinite(value), path, value, 'a finite number')
  return value
