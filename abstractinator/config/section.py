"""Base class of the sections of a config: dataclasses read from plain values.

Every error is one line: the path of the setting, its value, what is allowed.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self


class Limit(NamedTuple):
  """Condition on the value of a setting, as metadata of the type of its field.

  Attributes:
    holds: Function that tells whether a value is allowed; None always is.
    allowed: Description of the values that are allowed.
  """

  holds: Callable[[Any], bool]
  allowed: str


_POSITIVE = Limit(lambda x: x > 0, 'a positive number')
_NON_NEGATIVE = Limit(lambda x: x >= 0, '>= 0')
PositiveInt = Annotated[int, _POSITIVE]
PositiveOrNone = Annotated[int | None, _POSITIVE]
PositiveFloat = Annotated[float, _POSITIVE]
PositiveFloatOrNone = Annotated[float | None, _POSITIVE]
NonNegativeInt = Annotated[int, _NON_NEGATIVE]
NonNegativeFloat = Annotated[float, _NON_NEGATIVE]
Fraction = Annotated[float, Limit(lambda x: 0 <= x < 1, '0 <= value < 1')]


@dataclasses.dataclass(frozen=True)
class Section:
  """A group of settings: typed fields without defaults, checked when built."""

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      for limit in getattr(field.type, '__metadata__', ()):
        is_allowed = value is None or limit.holds(value)
        self.require(is_allowed, field.name, limit.allowed)
    self.check()

  def check(self) -> None:
    """Requires what limits of single settings cannot say.

    Raises:
      ValueError: If settings do not fit each other; see `require`.
    """

  @classmethod
  def from_dict(cls, values: Mapping[str, Any], path: str = '') -> Self:
    """Returns a section built from plain values.

    Args:
      values: Value of each field of the section; a nested section is a mapping.
      path: Path of the section in the whole config, for error messages.

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


def _require(ok: bool, path: str, value: Any, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{path}: got {value!r}, allowed: {allowed}')


def _convert(annotation: Any, value: Any, path: str) -> Any:
  """Returns a plain value as the type of its field; ValueError names `path`."""
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Annotated:
    return _convert(args[0], value, path)
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
