"""Where segments begin, and what they are made of."""

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array, Segments

_BITS_PER_NAT = 1.4426950408889634


def entropy_bits(logits: Array) -> Array:
  """Shannon entropy of softmax(logits).

  Args:
    logits: [..., V] any float type.

  Returns:
    [...] float32, bits, in [0, log2 V].
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1) * _BITS_PER_NAT


def document_starts(document_BS: Array) -> Array:
  """First id of each document, [B, S] bool; False on padding."""
  previous = jnp.pad(document_BS, ((0, 0), (1, 0)), constant_values=-1)
  return (document_BS >= 0) & (document_BS != previous[:, :-1])


def entropy_jumps(entropy_bits_BS: Array, threshold_bits: Array) -> Array:
  """Rule `entropy_delta`: ids open a segment where the entropy jumps.

  Both entropies are known before the id is seen, so that a decoder can take the
  same decision.

  Args:
    entropy_bits_BS: [B, S] float32, entropy of predicting id s from ids < s.
    threshold_bits: [] float32, smallest jump that counts.

  Returns:
    [B, S] bool. Whether the id opens one also depends on lengths and slots.

  Source: the approximate monotonicity constraint of Pagnoni et al., Byte Latent
    Transformer, arXiv:2412.09871, section 2.3.
  """
  jump = jnp.diff(entropy_bits_BS, axis=-1, prepend=entropy_bits_BS[:, :1])
  return jump > threshold_bits


def segment(
  wants_start_BS: Array,
  document_BS: Array,
  *,
  min_length: int,
  max_length: int,
  num_slots: int,
) -> Segments:
  """Divides rows into segments.

  An id opens a segment if it is the first of its document, if `max_length` ids
  lie in the open segment, or if it wants to and at least `min_length` do. Slots
  are finite: the first time that granting a wish would leave too few for the
  ids that follow, at `max_length` each, the rest of the row has `max_length`
  boundaries only. So no id is dropped while the row could fit at all, that is,
  while its documents need at most `num_slots` segments of `max_length`; in a
  row that could not, segments from `num_slots` on have no slot, and users of
  `index_BS` find nothing there.

  Decisions look at ids <= s only, up to the slots: the division of a prefix is
  the prefix of the division.

  Args:
    wants_start_BS: [B, S] bool, wishes of the rule.
    document_BS: [B, S] int32, -1 on padding; see `Batch`.
    min_length: Smallest segment, except at the end of a document.
    max_length: Largest segment.
    num_slots: Segments a row can hold.

  Returns:
    The segments.
  """
  is_valid_BS = document_BS >= 0
  is_first_BS = document_starts(document_BS)
  is_start_BS = _starts(wants_start_BS, is_first_BS, min_length, max_length)
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
  """First segment of the document that each id lies in, [B, S] int32.

  It bounds how far back an id may look; 0 on padding.
  """
  first_BS = jnp.where(document_starts(document_BS), segments.index_BS, 0)
  return jnp.where(document_BS >= 0, lax.cummax(first_BS, axis=1), 0)


def per_slot(x_BS: Array, segments: Segments, num_slots: int) -> Array:
  """What stands at the first id of each segment, [B, P]; 0 in empty slots."""
  slot_BS = jnp.where(segments.is_start_BS, segments.index_BS, num_slots)
  empty_BP = jnp.zeros((x_BS.shape[0], num_slots), x_BS.dtype)
  return jax.vmap(lambda e, i, x: e.at[i].set(x, mode='drop'))(
    empty_BP, slot_BS, x_BS
  )


def _latest(mark_BS: Array) -> Array:
  """Position of the last mark at or before each id, [B, S] int32."""
  position = jnp.arange(mark_BS.shape[1], dtype=jnp.int32)
  return lax.cummax(jnp.where(mark_BS, position, 0), axis=1)


def _starts(
  wants_start_BS: Array, is_first_BS: Array, min_length: int, max_length: int
) -> Array:
  """The division without regard to slots, [B, S] bool.

  Whether an id opens a segment depends on the length so far, and so on all ids
  before. Following it id by id would take S steps. Instead blocks of ids are
  followed at once from every possible length, then the blocks are chained, then
  followed again from the right one: about 2 sqrt(S) steps.
  """
  batch, size = wants_start_BS.shape
  block = 1 << max(3, (size.bit_length() + 1) // 2)
  num_blocks = -(-size // block)

  def blocked(x_BS):  # [block, B, num_blocks]
    x_BS = jnp.pad(x_BS, ((0, 0), (0, num_blocks * block - size)))
    return jnp.moveaxis(x_BS.reshape(batch, num_blocks, block), 2, 0)

  wants, first = blocked(wants_start_BS), blocked(is_first_BS)

  def follow(length, ids):
    wants, first = ids
    opens = first | (length >= max_length) | (wants & (length >= min_length))
    return jnp.where(opens, 1, length + 1), opens

  entry = jnp.broadcast_to(
    jnp.arange(1, max_length + 1, dtype=jnp.int32),
    (batch, num_blocks, max_length),
  )
  leave, _ = lax.scan(follow, entry, (wants[..., None], first[..., None]))

  def chain(length_B, leave_BL):
    after = jnp.take_along_axis(leave_BL, length_B[:, None] - 1, axis=1)[:, 0]
    return after, length_B

  begin = jnp.ones((batch,), jnp.int32)
  _, length = lax.scan(chain, begin, jnp.moveaxis(leave, 1, 0))
  _, opens = lax.scan(follow, length.T, (wants, first))
  return jnp.moveaxis(opens, 0, 2).reshape(batch, -1)[:, :size]


def _fit_slots(
  is_start_BS: Array,
  is_first_BS: Array,
  is_valid_BS: Array,
  max_length: int,
  num_slots: int,
) -> tuple[Array, Array]:
  """Falls back to `max_length` boundaries once slots run short.

  Returns:
    The starts, and the ids from the first denied wish on, [B, S] bool each.
  """
  size = is_start_BS.shape[1]
  position = jnp.arange(size, dtype=jnp.int32)
  # Segments that ids >= s need if one starts at s: the rest of its document at
  # `max_length`, and the documents after it.
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
  # Without a wish the count stays: boundaries that lengths and documents force
  # were paid for when the segment before them was granted.
  open_at = _latest(jnp.pad(is_start_BS, ((0, 0), (1, 0)))[:, :-1]) - 1
  is_forced = is_first_BS | (position - open_at == max_length)
  is_denied = (
    is_start_BS & ~is_forced & (used + rest_of_document + after > num_slots)
  )
  is_bound = (jnp.cumsum(is_denied, axis=1) > 0) & is_valid_BS
  anchor = _latest((is_start_BS & ~is_bound) | is_first_BS)
  regular = is_first_BS | ((position - anchor) % max_length == 0)
  return jnp.where(is_bound, regular & is_valid_BS, is_start_BS), is_bound
