"""Sections of a config: frozen dataclasses read from plain values.

An error names the path of the setting, its value and what is allowed.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self


def require(ok: bool, field: str, value: Any, allowed: str) -> None:
  """Raises ValueError naming a field and what it may be, unless `ok`."""
  if not ok:
    raise ValueError(f'{field}: got {value!r}, allowed: {allowed}')


def require_positive(config: Any, *fields: str) -> None:
  """Requires fields above 0."""
  for field in fields:
    value = getattr(config, field)
    require(value > 0, field, value, 'a positive number')


def require_fraction(config: Any, *fields: str) -> None:
  """Requires fields in 0 <= value < 1."""
  for field in fields:
    value = getattr(config, field)
    require(0 <= value < 1, field, value, '0 <= value < 1')


def _convert(annotation: Any, value: Any, path: str) -> Any:
  """Returns `value` as `annotation` wants it, or raises naming `path`."""
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    (annotation,) = [a for a in args if a is not type(None)]
    return _convert(annotation, value, path)
  if origin is Literal:
    require(value in args, path, value, ', '.join(map(str, args)))
    return value
  if origin is tuple:
    require(
      isinstance(value, Sequence) and not isinstance(value, str),
      path,
      value,
      'a list',
    )
    return tuple(
      _convert(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)
    )
  if dataclasses.is_dataclass(annotation):
    return annotation.from_dict(value, path)
  if annotation is float and type(value) is int:
    return float(value)
  require(
    type(value) is annotation, path, value, f'a value of {annotation.__name__}'
  )
  if annotation is float:
    require(math.isfinite(value), path, value, 'a finite number')
  return value


class Section:
  """A part of the config that can be read from a mapping."""

  @classmethod
  def from_dict(cls, values: Mapping[str, Any], path: str = '') -> Self:
    """Builds the section from plain values.

    Args:
      values: Exactly the fields of the section; nested sections as mappings.
      path: Where the section stands in the whole config, for messages.

    Returns:
      The section, checked.

    Raises:
      ValueError: If a key is unknown or missing, or a value is not allowed.
    """
    prefix = f'{path}.' if path else ''
    require(isinstance(values, Mapping), path, values, 'a group of settings')
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
      # Sections check themselves without knowing where they stand.
      raise ValueError(f'{prefix}{error}') from None

  def to_dict(self) -> dict[str, Any]:
    """Returns plain nested values, ready for JSON."""
    return dataclasses.asdict(self)
