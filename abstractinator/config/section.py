"""Base class of the sections of a config: dataclasses read from plain values.

Every error is one line: the path of the setting, its value, what is allowed.
"""

import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

# Characters of a value or name that an error shows.
_MAX_SHOWN = 120


class Limit(NamedTuple):
  """Condition on the value of a setting, as metadata of the type of its field.

  Attributes:
    holds: Function that tells whether a value is allowed; None always is.
    allowed: Description of the values that are allowed.
  """

  holds: Callable[[Any], bool]
  allowed: str


def positive(most: int) -> Limit:
  """Returns the limit of integers from 1 to `most`."""
  return Limit(lambda x: 0 < x <= most, f'a positive number, at most {most}')


def non_negative(most: float) -> Limit:
  """Returns the limit of numbers from 0 to `most`."""
  return Limit(lambda x: 0 <= x <= most, f'>= 0, at most {most:.10g}')


def positive_float(most: float) -> Limit:
  """Returns the limit of positive numbers up to `most` that are not tiny."""
  return Limit(
    lambda x: _MIN_FLOAT <= x <= most,
    f'a positive number, {_MIN_FLOAT:g} to {most:g}',
  )


# Programs compute with int32 and float32.
_MAX_INT = 2**31 - 1
_MIN_FLOAT, _MAX_FLOAT = 1e-30, 1e9
PositiveInt = Annotated[int, positive(_MAX_INT)]
PositiveOrNone = Annotated[int | None, positive(_MAX_INT)]
PositiveFloat = Annotated[float, positive_float(_MAX_FLOAT)]
PositiveFloatOrNone = Annotated[float | None, positive_float(_MAX_FLOAT)]
NonNegativeInt = Annotated[int, non_negative(_MAX_INT)]
NonNegativeFloat = Annotated[float, non_negative(_MAX_FLOAT)]
# Sizes beyond these fit no device, and take minutes to fail.
MAX_WIDTH = 2**16
Width = Annotated[int, positive(MAX_WIDTH)]
WidthOrNone = Annotated[int | None, positive(MAX_WIDTH)]
NumLayers = Annotated[int, positive(2**10)]
Fraction = Annotated[float, Limit(lambda x: 0 <= x < 1, '0 <= value < 1')]


@dataclasses.dataclass(frozen=True)
class Section:
  """A group of settings: typed fields, checked when built.

  Fields have no defaults, so that config files name every setting. A field that
  is added after a release, at the end, has one if models that were trained
  before can be read: the value with which they are as they were.
  """

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
      values: Value of each field of the section, but for fields with a default;
        a nested section is a mapping.
      path: Path of the section in the whole config, for error messages.

    Raises:
      ValueError: If a setting is unknown or missing, or its value is of another
        type or not allowed.
    """
    prefix = f'{path}.' if path else ''
    is_group = isinstance(values, Mapping)
    _require(is_group, path or 'config', values, 'a group of settings')
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
      if key not in fields:
        name = str(key) if str(key).isidentifier() else repr(key)
        name = name[:_MAX_SHOWN]
        near = difflib.get_close_matches(name, fields, n=2) or list(fields)
        raise ValueError(
          f'{prefix}{name}: unknown setting, allowed: {", ".join(near)}'
        )
    missing = [
      prefix + name
      for name, field in fields.items()
      if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
      raise ValueError(f'missing settings: {", ".join(missing)}')
    converted = {
      name: _convert(field.type, values[name], prefix + name)
      for name, field in fields.items()
      if name in values
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
    raise ValueError(f'{path}: got {_shown(value)}, allowed: {allowed}')


def _shown(value: Any) -> str:
  """Returns a value as its literal, shortened to fit a line."""
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # Digits or brackets without end.
    return 'a value too large to show'
  return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}...'


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
    is_float = abs(value) <= sys.float_info.max
    _require(is_float, path, value, f'at most {_MAX_FLOAT:.10g}')
    return float(value)
  is_typed = type(value) is annotation
  _require(is_typed, path, value, f'a value of {annotation.__name__}')
  if annotation is float:
    _require(math.isfinite(value), path, value, 'a finite number')
  return value
