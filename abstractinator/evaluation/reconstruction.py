"""How much of a text comes back from its codes alone."""

import jax.numpy as jnp

from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.types import Array, Segments


def free_running_counts(
  decoded_BPL: Array,
  length_BP: Array,
  ids_BS: Array,
  segments: Segments,
  is_valid_BP: Array,
) -> tuple[Array, Array]:
  """Counts the bytes that decoding got right.

  Each segment is compared on its own, position by position, so that a wrong
  length spoils its own segment only. A position counts if the segment or what
  was decoded for it has a byte there: the total is the sum over segments of the
  larger number of bytes. EOS is no byte; it ends what was decoded.

  So the ratio is 1 only if every byte comes back, and too long is as bad as
  too short.

  Args:
    decoded_BPL: [B, P, L] int32, decoded ids of each segment.
    length_BP: [B, P] int32, how many of them hold.
    ids_BS: [B, S] int32, what was encoded.
    segments: Its division.
    is_valid_BP: [B, P] bool, slots that count.

  Returns:
    Right bytes and their total, [] float32 each.
  """
  num_slots, max_length = decoded_BPL.shape[1:]
  is_byte_BPL = decoded_BPL < NUM_BYTES
  is_byte_BPL &= jnp.arange(max_length) < length_BP[..., None]
  # Truth in the same shape, -1 where there is none; what is no byte of a slot
  # drops out.
  is_wanted_BS = (ids_BS < NUM_BYTES) & (segments.index_BS >= 0)
  slot_BS = jnp.where(is_wanted_BS, segments.index_BS, num_slots)
  row_B1 = jnp.arange(ids_BS.shape[0])[:, None]
  truth_BPL = jnp.full_like(decoded_BPL, -1)
  truth_BPL = truth_BPL.at[row_B1, slot_BS, segments.offset_BS].set(
    ids_BS, mode='drop'
  )
  right_BP = jnp.sum(is_byte_BPL & (decoded_BPL == truth_BPL), axis=-1)
  total_BP = jnp.maximum(
    jnp.sum(truth_BPL >= 0, axis=-1), jnp.sum(is_byte_BPL, axis=-1)
  )

  def count(x_BP):
    return jnp.sum(jnp.where(is_valid_BP, x_BP, 0), dtype=jnp.float32)

  return count(right_BP), count(total_BP)
