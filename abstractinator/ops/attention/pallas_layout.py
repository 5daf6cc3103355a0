"""How attention kernels divide ids into blocks and heads into programs."""

import dataclasses

_LANES = 128
# Blocks that a program meets at once, and what all that it holds may take of
# the 16 MiB that compilers allow by default; beyond, one after the other.
_MAX_AT_ONCE = 5
_MAX_BYTES_AT_ONCE = 8 << 20
# Of the memory of a core, which has 96 MiB or more.
_MAX_BYTES = 64 << 20
# Heads any wider have not been tried.
_MAX_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class Layout:
  """A division of [B, S, heads x width] arrays, S a multiple of the block.

  Attributes:
    size: S.
    heads: H.
    heads_per_program: Heads of queries that a program has.
    key_heads: H, or 1 that all heads share; likewise of values.
    value_heads: Likewise.
    key_width: A.
    value_width: E.
    window: How many ids before itself an id sees; None for all.
    scale: Factor on the scores.
    block: Ids of a block.
    itemsize: Bytes of a number.
  """

  size: int
  heads: int
  heads_per_program: int
  key_heads: int
  value_heads: int
  key_width: int
  value_width: int
  window: int | None
  scale: float
  block: int
  itemsize: int

  @property
  def num_blocks(self) -> int:
    """Blocks of a row."""
    return self.size // self.block

  @property
  def reach(self) -> int:
    """How many blocks before its own a block of queries sees."""
    reach = self.num_blocks - 1
    if self.window is None:
      return reach
    return min(reach, -(-self.window // self.block))

  @property
  def steps(self) -> int:
    """Steps of a program: one for all near blocks, or one for each."""
    at_once = self.reach + 1
    if at_once > _MAX_AT_ONCE or self._bytes(at_once) > _MAX_BYTES_AT_ONCE:
      return at_once
    return 1

  @property
  def blocks_per_step(self) -> int:
    """Near blocks of a step."""
    return (self.reach + 1) // self.steps

  @property
  def bytes(self) -> int:
    """What the largest program, the backward pass of keys, holds at most."""
    return self._bytes(self.blocks_per_step)

  def _bytes(self, near: int) -> int:
    of_queries, of_values = (
      self.heads_per_program * width
      for width in (self.key_width, self.value_width)
    )
    # Keys and values, twice, and sums of their gradients; queries and what
    # came back, of each near block. One is read while another is computed with.
    read = 2 * self.itemsize * (2 + near) * (of_queries + of_values)
    return self.block * (read + 4 * (of_queries + of_values))

  def lanes(self, head: int) -> tuple[slice, slice, slice]:
    """Of a head of a program: lanes of its queries, keys and values."""
    key = 0 if self.key_heads == 1 else head
    value = 0 if self.value_heads == 1 else head
    return (
      _at(head, self.key_width),
      _at(key, self.key_width),
      _at(value, self.value_width),
    )

  def out_lanes(self, head: int) -> slice:
    """Of a head of a program: lanes of its result."""
    return _at(head, self.value_width)


def _at(index: int, width: int) -> slice:
  return slice(index * width, (index + 1) * width)


def make_layout(
  size: int,
  heads: tuple[int, int, int],
  widths: tuple[int, int],
  window: int | None,
  scale: float,
  itemsize: int,
) -> Layout:
  """Chooses blocks and programs.

  Args:
    size: Ids of a row; rows are padded to whole blocks.
    heads: Of queries, keys and values.
    widths: Of keys and of values.
    window: How many ids before itself an id sees; None for all.
    scale: Factor on the scores.
    itemsize: Bytes of a number.

  Returns:
    The layout.

  Raises:
    NotImplementedError: If a head is too wide, or heads that share keys or
      values are too many for the memory of a core.
  """
  if max(widths) > _MAX_WIDTH:
    raise NotImplementedError(
      f"attention by 'pallas': got heads {max(widths)} wide, allowed: at most"
      f' {_MAX_WIDTH}'
    )
  if window is None or window > 2 * _LANES:
    block = 2 * _LANES
  else:
    block = _LANES
  block = min(block, -(-size // _LANES) * _LANES)
  num_heads, *shared = heads
  is_shared = num_heads > 1 and 1 in shared
  layout = Layout(
    size=-(-size // block) * block,
    heads=num_heads,
    heads_per_program=_heads_per_program(num_heads, widths, is_shared),
    key_heads=heads[1],
    value_heads=heads[2],
    key_width=widths[0],
    value_width=widths[1],
    window=window,
    scale=scale,
    block=block,
    itemsize=itemsize,
  )
  if layout.bytes > _MAX_BYTES:
    raise NotImplementedError(
      f"attention by 'pallas': got {layout.heads_per_program} heads that a core"
      f' must hold, {layout.bytes >> 20} MiB, allowed: {_MAX_BYTES >> 20} MiB'
    )
  return layout


def _heads_per_program(
  heads: int, widths: tuple[int, int], is_shared: bool
) -> int:
  """The fewest heads that fill whole rows of lanes, if there are such."""
  # Gradients of what heads share are summed by the one program that has all.
  if not is_shared:
    for count in range(1, heads):
      if heads % count == 0 and all(count * w % _LANES == 0 for w in widths):
        return count
  return heads
