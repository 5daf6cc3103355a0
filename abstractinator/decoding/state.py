"""Request and state of generation, one entry per row (prompt)."""

import flax.struct

from abstractinator.decoding.expansion import ExpansionState
from abstractinator.decoding.top_codes import TopState
from abstractinator.ops.sampling import Draws, Filters
from abstractinator.types import Array


@flax.struct.dataclass
class Request:
  """Sampling settings and limit of each row.

  Attributes:
    key_B: Keys of jax.random, [B]; all random choices of a row follow from its
      key.
    top: Filters of top codes.
    levels: Filters of the ids of levels.
    limit_B: New bytes after which a row may stop, [B] int32.
  """

  key_B: Array
  top: Filters
  levels: Filters
  limit_B: Array

  def draws_of_top(self, num_levels: int) -> Draws:
    """Returns the random keys and filters of top codes."""
    return Draws(self.key_B, self.top).fold(num_levels)

  def draws_of_level(self, number: int) -> Draws:
    """Returns the random keys and filters of the ids of level `number`."""
    return Draws(self.key_B, self.levels).fold(number)


@flax.struct.dataclass
class GenerationState:
  """State of generation through all levels, between calls of `extend`.

  Attributes:
    request: Sampling settings and limits.
    top: State of the top codes.
    levels: State of each level, bottom first.
    rest: For each level but the top one, codes from the level above that do not
      fill a slot yet, the last ones of [B, Q - 1] int32, and their number, [B]
      int32.
    num_bytes_B: New bytes so far, [B] int32.
    is_done_B: Rows that decode no more bytes, [B] bool.
  """

  request: Request
  top: TopState
  levels: tuple[ExpansionState, ...]
  rest: tuple[tuple[Array, Array], ...]
  num_bytes_B: Array
  is_done_B: Array
