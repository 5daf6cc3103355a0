"""Dictionaries: tables of segments, each of which owns a code.

A row of a table [K, L] has the ids of a segment, -1 past its end. Rows are in
lexicographic order, so that a binary search finds a segment; rows without one
come last. The code of a segment is its row, and K, the escape, is that of all
segments without a row.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.types import Array, Segments

# Id of rows without a segment.
_UNUSED = np.iinfo(np.int32).max
# Cost of an id other than the one that a code spells. What it takes from the
# probability of that one vanishes in float32.
_WRONG_NATS = 30.0


def empty_table(num_rows: int, max_length: int) -> Array:
  """Returns a table without segments, [K, L] int32."""
  return jnp.full((num_rows, max_length), _UNUSED, jnp.int32)


def table_of(
  segments: Sequence[np.ndarray], num_rows: int, max_length: int
) -> np.ndarray:
  """Returns the table of different segments, on the host.

  Args:
    segments: Ids of each, at least one and at most L; K segments at most.
    num_rows: Number of rows, K.
    max_length: Most ids of a segment, L.

  Returns:
    [K, L] int32.
  """
  table_KL = np.full((num_rows, max_length), _UNUSED, np.int32)
  for row_L, ids in zip(table_KL, segments, strict=False):
    row_L[:] = -1
    row_L[: len(ids)] = ids
  return table_KL[np.lexsort(table_KL.T[::-1])]


def segment_ids(
  ids_BS: Array, segments: Segments, num_slots: int, max_length: int
) -> Array:
  """Returns the ids of each segment, [B, P, L] int32, -1 past its end."""
  shape = (ids_BS.shape[0], num_slots, max_length)
  row_B1 = jnp.arange(shape[0])[:, None]
  # A negative slot would count from the end.
  slot_BS = jnp.where(segments.index_BS >= 0, segments.index_BS, num_slots)
  at = row_B1, slot_BS, segments.offset_BS
  return jnp.full(shape, -1, jnp.int32).at[at].set(ids_BS, mode='drop')


def find(table_KL: Array, ids: Array) -> Array:
  """Returns the codes of segments.

  Args:
    table_KL: A table, [K, L] int32.
    ids: Ids of segments, [..., L] int32, -1 past the end of each.

  Returns:
    [...] int32: the row that is equal to the segment, or K if there is none.
  """
  size = len(table_KL)

  def is_less(row_L: Array) -> Array:
    first = jnp.argmax(row_L != ids, axis=-1, keepdims=True)
    pair = (jnp.take_along_axis(x, first, axis=-1) for x in (row_L, ids))
    return jnp.less(*pair)[..., 0]

  # Number of rows that are less than the segment, from its highest bit down.
  count = jnp.zeros(ids.shape[:-1], jnp.int32)
  for bit in reversed(range(size.bit_length())):
    more = count + (1 << bit)
    is_below = is_less(table_KL[jnp.minimum(more, size) - 1])
    count = jnp.where((more <= size) & is_below, more, count)
  row_L = table_KL[jnp.minimum(count, size - 1)]
  return jnp.where(jnp.all(row_L == ids, axis=-1), count, size)


def spell(table_KL: Array, codes: Array) -> Array:
  """Returns the segments of codes.

  Args:
    table_KL: A table, [K, L] int32.
    codes: Codes, [...] int32 in 0..K.

  Returns:
    Ids, [..., L + 1] int32, -1 past the end; -1 alone for the escape and for
    rows without a segment.
  """
  ids = table_KL[jnp.minimum(codes, len(table_KL) - 1)]
  is_open = (codes == len(table_KL))[..., None] | (ids == _UNUSED)
  ids = jnp.where(is_open, -1, ids)
  return jnp.concatenate([ids, jnp.full_like(ids[..., :1], -1)], axis=-1)


def first_id_logits(table_KL: Array, logits_V: Array) -> Array:
  """Returns the log-probability of the first id of the segment of each code.

  Args:
    table_KL: A table, [K, L] int32.
    logits_V: Logits of first ids, [..., V] float32.

  Returns:
    [..., K + 1] float32: 0 for the escape, which tells no id, and a cost that
    rules them out for rows without a segment.
  """
  first_K = table_KL[:, 0]
  is_used_K = first_K != _UNUSED
  logits_K = jax.nn.log_softmax(logits_V)[..., jnp.where(is_used_K, first_K, 0)]
  logits_K = jnp.where(is_used_K, logits_K, -_WRONG_NATS)
  return jnp.concatenate([logits_K, jnp.zeros_like(logits_K[..., :1])], axis=-1)


@flax.struct.dataclass
class Spelling:
  """Ids that follow from codes alone, arrays of any one shape.

  Attributes:
    ids: The ids, int32; -1 where a code leaves the id open.
    is_end: True for those that end their segments, bool.
  """

  ids: Array
  is_end: Array

  @property
  def is_given(self) -> Array:
    """True where a code spells the id."""
    return self.ids >= 0

  def logits(self, logits_V: Array) -> Array:
    """Returns logits of ids, [..., V], that are certain of given ids."""
    is_it = jnp.arange(logits_V.shape[-1]) == self.ids[..., None]
    certain_V = jnp.where(is_it, 0.0, -_WRONG_NATS)
    return jnp.where(self.is_given[..., None], certain_V, logits_V)

  def end_logits(self, logits: Array) -> Array:
    """Returns log-odds of ends, [...], that are certain at given ids."""
    certain = jnp.where(self.is_end, _WRONG_NATS, -_WRONG_NATS)
    return jnp.where(self.is_given, certain, logits)

  def ends(self, is_end: Array) -> Array:
    """Returns which ids end their segments; `is_end` where a code is open."""
    return jnp.where(self.is_given, self.is_end, is_end)


def spelling(
  spelled_BUL: Array | None, slot_BT: Array, offset_BT: Array
) -> Spelling | None:
  """Returns the ids that follow from the codes of their segments.

  Args:
    spelled_BUL: Segments of the codes of each row, [B, U, L + 1] from `spell`;
      None if codes leave all ids open.
    slot_BT: Segment of each id, [B, T] int32; arbitrary for padding.
    offset_BT: Position of each id in its segment, [B, T] int32.

  Returns:
    The ids, [B, T]; None if all are open.
  """
  if spelled_BUL is None:
    return None
  batch, slots, size = spelled_BUL.shape
  flat_BN = spelled_BUL.reshape(batch, -1)
  at_BT = jnp.clip(slot_BT, 0, slots - 1) * size + offset_BT
  ids_BT, next_BT = (
    jnp.take_along_axis(flat_BN, at_BT + i, axis=1) for i in (0, 1)
  )
  is_there_BT = (slot_BT >= 0) & (slot_BT < slots)
  return Spelling(
    jnp.where(is_there_BT, ids_BT, -1), (ids_BT >= 0) & (next_BT < 0)
  )
