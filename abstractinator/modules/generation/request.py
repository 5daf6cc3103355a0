"""What is asked for of rows that are continued."""

import flax.struct

from abstractinator.ops.draw import Draws, Filters
from abstractinator.types import Array


@flax.struct.dataclass
class Request:
  """What is asked for, row by row.

  Attributes:
    key_B: [B] keys of jax.random; what a row draws depends on nothing else.
    top: How top codes are drawn.
    levels: How ids of levels are.
    limit_B: [B] int32, new bytes after which a row need not go on.
  """

  key_B: Array
  top: Filters
  levels: Filters
  limit_B: Array

  def draws_of_top(self, num_levels: int) -> Draws:
    """Of top codes."""
    return Draws(self.key_B, self.top).fold(num_levels)

  def draws_of_level(self, number: int) -> Draws:
    """Of the ids of a level, counted from 0 at the bottom."""
    return Draws(self.key_B, self.levels).fold(number)
