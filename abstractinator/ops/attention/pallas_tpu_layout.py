"""Division of ids into blocks and of heads into programs, for TPU."""

import dataclasses

from abstractinator.ops.attention.pallas_common import BlockLayout
from abstractinator.types import Array

_LANES = 128
# Limits for meeting all near blocks in one step: their number, and the bytes
# that a program then holds, of the 16 MiB that compilers allow by default.
MAX_BLOCKS_AT_ONCE = 5
_MAX_BYTES_AT_ONCE = 8 << 20
# Limit for any program; the memory of a core is 96 MiB or more.
_MAX_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class TpuLayout(BlockLayout):
  """Division of [B, S, heads x width] arrays, with S a multiple of the block.

  Attributes:
    size: Padded number of ids S of a row.
    heads: Number of heads H of the queries.
    heads_per_program: Number of heads of queries that a program has.
    key_heads: Number of heads of the keys: H, or 1 that all heads share.
    value_heads: Number of heads of the values: H, or 1 that all heads share.
    itemsize: Bytes of a number.
    max_blocks_at_once: Largest number of near blocks that are met in one step.
  """

  size: int
  heads: int
  heads_per_program: int
  key_heads: int
  value_heads: int
  itemsize: int
  max_blocks_at_once: int

  @property
  def num_blocks(self) -> int:
    """Number of blocks of a row."""
    return self.size // self.block

  @property
  def programs(self) -> int:
    """Number of programs that the heads of a block of ids are divided into."""
    return self.heads // self.heads_per_program

  @property
  def reach(self) -> int:
    """Number of blocks before its own that a block of queries sees."""
    reach = self.num_blocks - 1
    if self.window is None:
      return reach
    return min(reach, -(-self.window // self.block))

  @property
  def steps(self) -> int:
    """Steps of a program: one for all near blocks, or one for each."""
    near = self.reach + 1
    if near > self.max_blocks_at_once or self._bytes(near) > _MAX_BYTES_AT_ONCE:
      return near
    return 1

  @property
  def blocks_per_step(self) -> int:
    """Number of near blocks that are met in one step."""
    return (self.reach + 1) // self.steps

  @property
  def bytes(self) -> int:
    """Upper bound on the bytes held by a program, in any of the kernels."""
    return self._bytes(self.blocks_per_step)

  def _bytes(self, near: int) -> int:
    """Returns bytes of the largest program, that of the gradients of keys."""
    of_queries, of_values = (
      self.heads_per_program * width
      for width in (self.key_width, self.value_width)
    )
    # Keys and values, and queries and gradients of each near block, are held
    # twice: one copy is read while the other is computed with. Sums of the
    # gradients of keys and values are float32.
    read = 2 * self.itemsize * (2 + near) * (of_queries + of_values)
    return self.block * (read + 4 * (of_queries + of_values))

  def lanes(self, head: int) -> tuple[slice, slice, slice, slice]:
    """Returns the lanes of queries, keys, values and results of a head.

    Heads are counted within their program.
    """

    def at(index, width):
      return slice(index * width, (index + 1) * width)

    return (
      at(head, self.key_width),
      at(0 if self.key_heads == 1 else head, self.key_width),
      at(0 if self.value_heads == 1 else head, self.value_width),
      at(head, self.value_width),
    )


def make_layout(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  window: int | None,
  scale: float,
  max_blocks_at_once: int,
) -> TpuLayout:
  """Returns the layout for the arguments of `pallas_tpu.attention`.

  S is rounded up to whole blocks.

  Raises:
    NotImplementedError: If heads that share keys or values do not fit in the
      memory of a core.
  """
  _, size, heads, key_width = q_BSHA.shape
  value_width = v_BSGE.shape[3]
  block = 2 * _LANES if window is None or window > 2 * _LANES else _LANES
  block = min(block, -(-size // _LANES) * _LANES)
  # One program has all heads that share keys or values, and sums the gradients
  # of what they share.
  is_shared = heads > 1 and 1 in (k_BSGA.shape[2], v_BSGE.shape[2])
  layout = TpuLayout(
    size=-(-size // block) * block,
    heads=heads,
    heads_per_program=heads
    if is_shared
    else _heads_per_program(heads, (key_width, value_width)),
    key_heads=k_BSGA.shape[2],
    value_heads=v_BSGE.shape[2],
    key_width=key_width,
    value_width=value_width,
    window=window,
    scale=scale,
    block=block,
    itemsize=v_BSGE.dtype.itemsize,
    max_blocks_at_once=max_blocks_at_once,
  )
  if layout.bytes > _MAX_BYTES:
    raise NotImplementedError(
      f"attention by 'pallas': got {layout.heads_per_program} heads that a core"
      f' must hold, {layout.bytes >> 20} MiB, allowed: {_MAX_BYTES >> 20} MiB'
    )
  return layout


def _heads_per_program(heads: int, widths: tuple[int, int]) -> int:
  """Returns the fewest heads that fill whole rows of lanes, or all heads."""
  for count in range(1, heads):
    if heads % count == 0 and all(count * w % _LANES == 0 for w in widths):
      return count
  return heads
