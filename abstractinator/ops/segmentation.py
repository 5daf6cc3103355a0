"""Division of whole rows into segments."""

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.segmentation_rules import Known, Wishes, opens
from abstractinator.types import Array, PyTree, Segments


def document_starts(document_BS: Array) -> Array:
  """Marks the first id of each document, [B, S] bool; False on padding."""
  previous = jnp.pad(document_BS, ((0, 0), (1, 0)), constant_values=-1)
  return (document_BS >= 0) & (document_BS != previous[:, :-1])


def known_before(
  ids_BS: Array,
  document_BS: Array,
  entropy_bits_BS: Array,
  surprisal_bits_BS: Array,
) -> Known:
  """Returns the facts that are known before each id of whole rows.

  Args:
    ids_BS: Ids, [B, S] int32.
    document_BS: Document of each id, [B, S] int32, -1 on padding.
    entropy_bits_BS: Entropy of predicting id s from ids < s, [B, S] float32.
    surprisal_bits_BS: -log2 p of id s in that prediction, [B, S] float32.

  Returns:
    Facts for each id s, [B, S] each: they use ids < s and the entropy of s.
  """
  first_BS = _latest(document_starts(document_BS))
  return Known(
    entropy_bits=entropy_bits_BS,
    last_entropy_bits=_back(entropy_bits_BS, 1),
    last_surprisal_bits=_back(surprisal_bits_BS, 1),
    last_id=_back(ids_BS, 1),
    second_last_id=_back(ids_BS, 2),
    third_last_id=_back(ids_BS, 3),
    position=jnp.arange(ids_BS.shape[1], dtype=jnp.int32) - first_BS,
  )


def segment(
  wishes: Wishes,
  document_BS: Array,
  *,
  min_length: int,
  max_length: int,
  num_slots: int,
) -> Segments:
  """Divides rows into segments.

  An id opens a segment if it is the first of its document, if the open segment
  has `max_length` ids, or if the id wants to and the open segment has at least
  `min_length` ids.

  Slots are finite. A wish is denied if it would leave too few slots for the
  ids that follow, even in segments of `max_length`; from the first denied wish
  on, the rest of the row is divided at `max_length`. So every segment has a
  slot if the documents of the row need at most `num_slots` segments of
  `max_length`. In other rows segments from `num_slots` on have no slot.

  The decision about id s looks at ids <= s only, except for the slots: the
  division of a prefix is the prefix of the division.

  Args:
    wishes: Wishes of the rule, [B, S] each.
    document_BS: Document of each id, [B, S] int32, -1 on padding; see `Batch`.
    min_length: Fewest ids of a segment, except at the end of a document.
    max_length: Most ids of a segment.
    num_slots: Number of segments that a row can hold.

  Returns:
    The segments.
  """
  is_valid_BS = document_BS >= 0
  is_first_BS = document_starts(document_BS)
  is_start_BS = _starts(wishes, is_first_BS, min_length, max_length)
  is_start_BS &= is_valid_BS
  is_start_BS, is_bound_BS = _fit_slots(
    is_start_BS, is_first_BS, is_valid_BS, max_length, num_slots
  )
  index_BS = jnp.where(
    is_valid_BS, jnp.cumsum(is_start_BS, axis=1, dtype=jnp.int32) - 1, -1
  )
  next_index = jnp.pad(index_BS, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]
  position = jnp.arange(index_BS.shape[1], dtype=jnp.int32)
  return Segments(
    index_BS=index_BS,
    is_start_BS=is_start_BS,
    is_end_BS=is_valid_BS & (index_BS != next_index),
    offset_BS=jnp.where(is_valid_BS, position - _latest(is_start_BS), 0),
    count_B=jnp.sum(is_start_BS, axis=1, dtype=jnp.int32),
    is_capacity_bound_BS=is_bound_BS,
  )


def first_slots(segments: Segments, document_BS: Array) -> Array:
  """Returns the first segment of the document of each id, [B, S] int32.

  An id may not look at earlier segments. The result is 0 on padding.
  """
  first_BS = jnp.where(document_starts(document_BS), segments.index_BS, 0)
  return jnp.where(document_BS >= 0, lax.cummax(first_BS, axis=1), 0)


def per_slot(x_BS: Array, segments: Segments, num_slots: int) -> Array:
  """Takes the value at the first id of each segment, [B, P]; 0 if empty."""
  return _to_slots(x_BS, segments.is_start_BS, segments, num_slots)


def per_slot_end(x_BS: Array, segments: Segments, num_slots: int) -> Array:
  """Takes the value at the last id of each segment, [B, P]; 0 if empty."""
  return _to_slots(x_BS, segments.is_end_BS, segments, num_slots)


def at_starts(tree: PyTree, segments: Segments, num_slots: int) -> PyTree:
  """Takes what arrays hold at the first id of each segment.

  Args:
    tree: Arrays, [B, S, ...].
    segments: Division of the rows.
    num_slots: Number of slots, P.

  Returns:
    Arrays, [B, P, ...]; arbitrary in empty slots.
  """
  shape_BS = segments.is_start_BS.shape
  position_BS = jnp.broadcast_to(jnp.arange(shape_BS[1]), shape_BS)
  at_BP = per_slot(position_BS, segments, num_slots)
  row_B1 = jnp.arange(shape_BS[0])[:, None]
  return jax.tree.map(lambda x: x[row_B1, at_BP], tree)


def _to_slots(
  x_BS: Array, mark_BS: Array, segments: Segments, num_slots: int
) -> Array:
  """Moves the value at each marked id to the slot of its segment, [B, P]."""
  slot_BS = jnp.where(mark_BS, segments.index_BS, num_slots)
  empty_BP = jnp.zeros((x_BS.shape[0], num_slots), x_BS.dtype)
  return jax.vmap(lambda e, i, x: e.at[i].set(x, mode='drop'))(
    empty_BP, slot_BS, x_BS
  )


def _latest(mark_BS: Array) -> Array:
  """Returns the position of the last mark up to each id, [B, S] int32."""
  position = jnp.arange(mark_BS.shape[1], dtype=jnp.int32)
  return lax.cummax(jnp.where(mark_BS, position, 0), axis=1)


def _back(x_BS: Array, by: int) -> Array:
  """Returns the value `by` ids before each id, [B, S]; 0 before the first."""
  return jnp.pad(x_BS, ((0, 0), (by, 0)))[:, : x_BS.shape[1]]


def _starts(
  wishes: Wishes, is_first_BS: Array, min_length: int, max_length: int
) -> Array:
  """Divides rows as if slots never ran short; returns the starts, [B, S] bool.

  An id opens a segment depending on the length so far, and so on all ids
  before. A walk from id to id would take S steps. Instead all blocks of ids are
  walked at once, from every possible length; then the blocks are chained, and
  of each block the walk from the right length is kept: about 2 sqrt(S) steps.
  The length at the beginning of a block gives the first id of the open segment,
  and with it the sum that the segment has collected.

  A second walk, from the right lengths alone, would need less memory. But XLA
  may compute the wishes again for it and round them differently: the walks
  could disagree about an id, and segments become too long.
  """
  batch, size = is_first_BS.shape
  block = 1 << max(3, (size.bit_length() + 1) // 2)
  num_blocks = -(-size // block)
  padding = ((0, 0), (0, num_blocks * block - size))

  def blocked(x_BS: Array) -> Array:  # [block, B, num_blocks]
    x_BS = jnp.pad(x_BS, padding)
    return jnp.moveaxis(x_BS.reshape(batch, num_blocks, block), 2, 0)

  ids = jax.tree.map(blocked, (wishes, is_first_BS))

  def walk(
    carry: tuple[Array, Array], id_: tuple[Wishes, Array]
  ) -> tuple[tuple[Array, Array], Array]:
    (length, collected), (wish, is_first) = carry, id_
    length, collected, is_start = opens(
      length, collected, wish, is_first, min_length, max_length
    )
    return (length, collected), is_start

  # The sum for each length: gains of the ids after the first of the segment
  # that has this length at the beginning of a block. Lengths that no segment
  # can have there do no harm.
  length_L = jnp.arange(1, max_length + 1, dtype=jnp.int32)
  begin = jnp.arange(num_blocks, dtype=jnp.int32) * block
  total = jnp.cumsum(jnp.pad(wishes.gain, ((0, 0), (1, 0))), axis=1)
  from_id = jnp.maximum(begin[:, None] - length_L + 1, 0)
  collected = total[:, begin, None] - total[:, from_id]
  entry = jnp.broadcast_to(length_L, collected.shape)
  (leave, _), is_start = lax.scan(
    walk, (entry, collected), jax.tree.map(lambda x: x[..., None], ids)
  )

  def chain(length_B: Array, leave_BL: Array) -> tuple[Array, Array]:
    after = jnp.take_along_axis(leave_BL, length_B[:, None] - 1, axis=1)[:, 0]
    return after, length_B

  first_B = jnp.ones((batch,), jnp.int32)
  _, length = lax.scan(chain, first_B, jnp.moveaxis(leave, 1, 0))
  chosen = (length.T - 1)[None, ..., None]
  is_start = jnp.take_along_axis(is_start, chosen, axis=3)[..., 0]
  return jnp.moveaxis(is_start, 0, 2).reshape(batch, -1)[:, :size]


def _fit_slots(
  is_start_BS: Array,
  is_first_BS: Array,
  is_valid_BS: Array,
  max_length: int,
  num_slots: int,
) -> tuple[Array, Array]:
  """Falls back to `max_length` boundaries once slots run short.

  Returns:
    The starts, and the ids from the first denied wish to the end of the row,
    [B, S] bool each.
  """
  size = is_start_BS.shape[1]
  position = jnp.arange(size, dtype=jnp.int32)
  # Segments of `max_length` that ids >= s need if one starts at s: for the rest
  # of its document, and for the documents after it.
  is_last = (
    is_valid_BS & ~jnp.pad(is_valid_BS & ~is_first_BS, ((0, 0), (0, 1)))[:, 1:]
  )
  document_end = lax.cummin(
    jnp.where(is_last, position, size - 1), axis=1, reverse=True
  )
  rest_of_document = -(-(document_end + 1 - position) // max_length)
  whole = jnp.where(is_first_BS, rest_of_document, 0)
  after = jnp.sum(whole, axis=1, keepdims=True) - jnp.cumsum(whole, axis=1)
  used = jnp.cumsum(is_start_BS, axis=1) - is_start_BS
  # Forced boundaries are never denied: their slots were counted when the wish
  # before them was granted.
  open_at = _latest(jnp.pad(is_start_BS, ((0, 0), (1, 0)))[:, :-1]) - 1
  is_forced = is_first_BS | (position - open_at == max_length)
  is_denied = (
    is_start_BS & ~is_forced & (used + rest_of_document + after > num_slots)
  )
  is_bound = (jnp.cumsum(is_denied, axis=1) > 0) & is_valid_BS
  anchor = _latest((is_start_BS & ~is_bound) | is_first_BS)
  regular = is_first_BS | ((position - anchor) % max_length == 0)
  return jnp.where(is_bound, regular & is_valid_BS, is_start_BS), is_bound
