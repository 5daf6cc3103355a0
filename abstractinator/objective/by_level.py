"""Named values of a pyramid, kept by level until they are written."""

import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

import flax.struct

T = TypeVar('T')
U = TypeVar('U')


@flax.struct.dataclass
class ByLevel(Generic[T]):
  """Named values of the levels of a pyramid and of the pyramid as a whole.

  Loss terms, metrics, sums over rows and alarms all have this form.

  Attributes:
    levels: Values of each level, bottom first, by name. Empty where nothing is
      known of any level.
    whole: Values of the whole pyramid, those of its top LM among them, by name.
  """

  levels: tuple[dict[str, T], ...] = ()
  whole: dict[str, T] = flax.struct.field(default_factory=dict)

  def __or__(self, other: 'ByLevel[T]') -> 'ByLevel[T]':
    """Returns the values of both; where both have a name, those of `other`."""
    none: dict[str, T] = {}
    pairs = itertools.zip_longest(self.levels, other.levels, fillvalue=none)
    return ByLevel(tuple(a | b for a, b in pairs), self.whole | other.whole)

  def apply(
    self, function: Callable[[dict[str, T]], dict[str, U]]
  ) -> 'ByLevel[U]':
    """Returns a function of the values of each level and of the whole."""
    return ByLevel(tuple(map(function, self.levels)), function(self.whole))

  def flattened(self) -> dict[str, T]:
    """Returns the values by the names under which they are written.

    Files, logs and reports call this when they write. A name of a level has
    `level_prefix` before it.
    """
    found: dict[str, T] = {}
    for number, level in enumerate(self.levels):
      prefix = level_prefix(number, len(self.levels))
      found |= {prefix + name: value for name, value in level.items()}
    return found | self.whole


def level_prefix(number: int, num_levels: int) -> str:
  """Returns what is written before the names of a level.

  Args:
    number: Number of the level, counted from 0.
    num_levels: Number of levels of the pyramid.

  Returns:
    'level0/', 'level1/' and so on; nothing if there is only one level.
  """
  return f'level{number}/' if num_levels > 1 else ''
