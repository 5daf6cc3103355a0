"""Rows of codes, and what decoded segments make of them one level down."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array


@flax.struct.dataclass
class CodeRows:
  """Codes of rows of packed documents, as they are decoded.

  Attributes:
    codes_BU: [B, U] int32; arbitrary in empty slots.
    is_valid_BP: [B, P] bool, slots with a segment, the first ones of a row.
    lowest_BP: [B, P] int32, first slot of the document of each slot; arbitrary
      in empty slots.
    origin_BP: [B, P] int32, the slot of the top level that each comes from.
  """

  codes_BU: Array
  is_valid_BP: Array
  lowest_BP: Array
  origin_BP: Array


def top_rows(codes_BU: Array, is_valid_BP: Array, lowest_BP: Array) -> CodeRows:
  """Rows that come from themselves."""
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
  """Makes the ids that segments decode to the codes of the level below.

  The ids of a document follow each other; every document begins a slot. With
  several codes a slot, those that do not fill a slot at the end of a document
  are left out, and so is what finds no slot in its row: only wrong lengths lead
  to either.

  Args:
    rows: What was decoded.
    ids_BPL: [B, P, L] int32, ids of each segment.
    length_BP: [B, P] int32, how many of them hold; 0 in empty slots.
    num_slots: Slots of a row of the level below.
    num_queries: Codes of a slot there.

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

  def of_document(x_BP):
    return jnp.take_along_axis(x_BP, rows.lowest_BP, axis=1)

  # Slots of each document, and those of the documents before it.
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
