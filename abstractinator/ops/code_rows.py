"""Rows of codes, and the rows of the level below that they decode to."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array


@flax.struct.dataclass
class CodeRows:
  """Codes of rows of packed documents while they are decoded.

  Attributes:
    codes_BU: Codes, [B, U] int32; arbitrary in empty slots.
    is_valid_BP: True for slots with a segment, the first ones of a row, [B, P]
      bool.
    lowest_BP: First slot of the document of each slot, [B, P] int32; arbitrary
      in empty slots.
    origin_BP: Slot of the top level from which each slot was decoded, [B, P]
      int32.
  """

  codes_BU: Array
  is_valid_BP: Array
  lowest_BP: Array
  origin_BP: Array


def top_rows(codes_BU: Array, is_valid_BP: Array, lowest_BP: Array) -> CodeRows:
  """Returns rows of the top level, whose slots are their own origin."""
  origin_BP = jnp.broadcast_to(
    jnp.arange(is_valid_BP.shape[1], dtype=jnp.int32), is_valid_BP.shape
  )
  return CodeRows(codes_BU, is_valid_BP, lowest_BP, origin_BP)


def unfold(
  rows: CodeRows,
  ids_BPL: Array,
  length_BP: Array,
  *,
  num_slots: int,
  num_queries: int,
) -> CodeRows:
  """Lays out decoded ids as the codes of the level below.

  The ids of a document follow each other; every document begins a slot. If a
  slot has several codes, ids at the end of a document that do not fill a slot
  are left out. So are ids beyond the last slot of a row. Both happen only if
  lengths are wrong.

  Args:
    rows: Rows whose segments were decoded.
    ids_BPL: Ids that each segment decodes to, [B, P, L] int32.
    length_BP: Number of ids of each segment, [B, P] int32; 0 in empty slots.
    num_slots: Number of slots of a row of the level below.
    num_queries: Number of codes per slot of the level below.

  Returns:
    Rows of the level below.
  """
  batch, slots, longest = ids_BPL.shape
  row_B11 = jnp.arange(batch)[:, None, None]
  row_B1 = row_B11[..., 0]
  is_first_BP = rows.is_valid_BP & (rows.lowest_BP == jnp.arange(slots))
  document_BP = jnp.cumsum(is_first_BP, axis=1) - 1
  total_BP = jax.vmap(
    lambda x, i: jax.ops.segment_sum(x, i, num_segments=slots)[i]
  )(length_BP, document_BP)

  def of_document(x_BP: Array) -> Array:
    return jnp.take_along_axis(x_BP, rows.lowest_BP, axis=1)

  # Slots of each document, and of all documents before it.
  whole_BP = total_BP // num_queries
  new_BP = jnp.where(is_first_BP, whole_BP, 0)
  begin_BP = jnp.cumsum(new_BP, axis=1) - new_BP
  before_BP = jnp.cumsum(length_BP, axis=1) - length_BP
  offset_L = jnp.arange(longest)
  number_BPL = (before_BP - of_document(before_BP))[..., None] + offset_L
  is_kept_BPL = offset_L < length_BP[..., None]
  is_kept_BPL &= number_BPL < num_queries * whole_BP[..., None]
  at_BPL = num_queries * of_document(begin_BP)[..., None] + number_BPL
  num_codes = num_queries * num_slots
  codes_BU = jnp.zeros((batch, num_codes), jnp.int32)
  codes_BU = codes_BU.at[
    row_B11, jnp.where(is_kept_BPL, at_BPL, num_codes)
  ].set(ids_BPL, mode='drop')
  opens_BPL = is_kept_BPL & (number_BPL % num_queries == 0)
  empty_BP = jnp.zeros((batch, num_slots), jnp.int32)
  origin_BP = empty_BP.at[
    row_B11, jnp.where(opens_BPL, at_BPL // num_queries, num_slots)
  ].set(rows.origin_BP[..., None], mode='drop')
  lowest_BP = empty_BP.at[
    row_B1, jnp.where(is_first_BP, begin_BP, num_slots)
  ].max(begin_BP, mode='drop')
  count_B1 = jnp.sum(new_BP, axis=1, keepdims=True)
  return CodeRows(
    codes_BU=codes_BU,
    is_valid_BP=jnp.arange(num_slots) < count_B1,
    lowest_BP=lax.cummax(lowest_BP, axis=1),
    origin_BP=origin_BP,
  )
