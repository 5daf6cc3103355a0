"""Programs that encode rows, score them given other codes, and decode them."""

from collections.abc import Sequence
from typing import cast

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.evaluation import code_choice
from abstractinator.evaluation.likelihood import row_bits
from abstractinator.model.pyramid import DecodedRows, PyramidCodes
from abstractinator.ops import segmentation
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Batch, PyTree

# Codes that an expander can be given in place of those of its segments; see
# `substitute`.
SUBSTITUTES = ('true', 'zeroed', 'shuffled')


@flax.struct.dataclass
class CodedLevel:
  """Segments and codes of one level.

  Attributes:
    index_BS: Segment of each id, [B, S] int32; -1 on padding.
    entropy_bits_BS: Entropy of the prediction of each id, by which segments are
      cut, [B, S] float32; arbitrary on padding.
    bits_BS: -log2 p of each id under the entropy model, [B, S] float32; 0 on
      padding.
    is_short_BS: True for ids that were cut as they are because their row ran
      short of slots, [B, S] bool.
    codes_BU: Codes of all slots, [B, U] int32.
    is_code_BU: True for the codes of slots that hold a segment, [B, U] bool.
    byte_slot_BS: Segment of this level that each id of the first level belongs
      to, by way of the first code of its segment in every level below, [B, S of
      the first level] int32; -1 on padding.
    num_queries: Number of codes of a segment, Q.
  """

  index_BS: Array
  entropy_bits_BS: Array
  bits_BS: Array
  is_short_BS: Array
  codes_BU: Array
  is_code_BU: Array
  byte_slot_BS: Array
  num_queries: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class CodedRows:
  """Codes of rows, their cost given other codes, and what they decode to.

  Attributes:
    ids_BS: Ids that were encoded, [B, S] int32.
    levels: The levels, bottom first.
    bits: For each level the bits of the ids of each row under the expander, by
      the name in `SUBSTITUTES` of the codes that it is given, [B] float32.
    top_document_BU: Document of each top code, [B, U] int32; -1 in empty slots.
    decoded: Bytes that the top codes decode to; None if not asked for.
  """

  ids_BS: Array
  levels: tuple[CodedLevel, ...]
  bits: tuple[dict[str, Array], ...]
  top_document_BU: Array
  decoded: DecodedRows | None


def code_rows(
  variables: PyTree,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
  substitutes: Sequence[str],
  decode: bool,
) -> CodedRows:
  """Encodes rows, scores them given other codes, and decodes them.

  Args:
    variables: Parameters and collections of the model.
    batch: Rows of bytes.
    model: The pyramid.
    substitutes: Names in `SUBSTITUTES` of the codes that expanders are given.
    decode: Whether to decode the rows from their top codes alone.

  Returns:
    The coded rows.
  """
  codes, bits = cast(
    tuple[PyramidCodes, tuple[dict[str, Array], ...]],
    model.apply(variables, batch, substitutes, method=_compress_and_score),
  )
  return CodedRows(
    ids_BS=batch.ids_BS,
    levels=coded_levels(codes),
    bits=bits,
    top_document_BU=codes.top_codes.document_BP,
    decoded=_decode(variables, codes, model) if decode else None,
  )


def code_levels(
  variables: PyTree,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
  candidates: int = 1,
) -> tuple[CodedLevel, ...]:
  """Encodes rows, without the rest of `code_rows`.

  Args:
    variables: Parameters and collections of the model.
    batch: Rows of bytes.
    model: The pyramid.
    candidates: Number of nearest codes of a top segment of which the cheapest
      is taken; see `code_choice`.
  """

  def run(pyramid: AbstractinatorPyramid) -> PyramidCodes:
    if candidates == 1:
      return pyramid.compress_all(batch)
    return code_choice.choose_codes(pyramid, batch, candidates)[0]

  return coded_levels(cast(PyramidCodes, model.apply(variables, method=run)))


def coded_levels(codes: PyramidCodes) -> tuple[CodedLevel, ...]:
  """Returns the segments and codes of all levels, bottom first."""
  found: list[CodedLevel] = []
  for compressed in codes.levels:
    index_BS = compressed.segments.index_BS
    byte_slot_BS = index_BS
    if found:
      below = found[-1]
      # The first code of a segment stands for it in the level above.
      at_BS = jnp.maximum(below.byte_slot_BS, 0) * below.num_queries
      byte_slot_BS = jnp.where(
        below.byte_slot_BS >= 0,
        jnp.take_along_axis(index_BS, at_BS, axis=1),
        -1,
      )
    nats_BS = compressed.entropy_nats_BS
    num_slots = compressed.is_valid_BP.shape[1]
    found.append(
      CodedLevel(
        index_BS=index_BS,
        entropy_bits_BS=compressed.entropy_bits_BS,
        bits_BS=jnp.where(index_BS >= 0, nats_BS * BITS_PER_NAT, 0.0),
        is_short_BS=compressed.segments.is_capacity_bound_BS,
        codes_BU=compressed.quantized.codes_BP,
        is_code_BU=compressed.is_code_BU,
        byte_slot_BS=byte_slot_BS,
        num_queries=compressed.is_code_BU.shape[1] // num_slots,
      )
    )
  return tuple(found)


def substitute(
  vectors_BUD: Array,
  is_code_BU: Array,
  num_queries: int,
  name: str,
  nothing: int = 0,
) -> Array:
  """Returns vectors of codes in place of those of the segments of a row.

  Args:
    vectors_BUD: Vectors of the codes, [B, U, D], or the codes, [B, U, 1].
    is_code_BU: True for the codes of slots that hold a segment, which are the
      first ones of a row, [B, U] bool.
    num_queries: Number of codes of a segment, Q.
    name: 'true' for the codes themselves; 'zeroed' for `nothing`; 'shuffled':
      each segment gets the codes of the segment half a row further on,
      cyclically. Rows are not mixed, so that the result does not depend on
      which rows share a batch.
    nothing: Number that stands for no code.

  Returns:
    The vectors, [B, U, D].
  """
  if name == 'true':
    return vectors_BUD
  if name == 'zeroed':
    return jnp.full_like(vectors_BUD, nothing)
  count_B1 = jnp.sum(is_code_BU, axis=1, keepdims=True)
  by_B1 = count_B1 // num_queries // 2 * num_queries
  at_U = jnp.arange(vectors_BUD.shape[1])
  from_BU = (at_U + by_B1) % jnp.maximum(count_B1, 1)
  from_BU = jnp.where(is_code_BU, from_BU, at_U)
  return jnp.take_along_axis(vectors_BUD, from_BU[..., None], axis=1)


def _compress_and_score(
  pyramid: AbstractinatorPyramid, batch: Batch, substitutes: Sequence[str]
) -> tuple[PyramidCodes, tuple[dict[str, Array], ...]]:
  """Encodes rows and computes `CodedRows.bits`; a method of the pyramid."""
  codes = pyramid.compress_all(batch)
  # All substitutes form one batch: one expander to compile.
  repeated, top_lm = jax.tree.map(
    lambda x: jnp.concatenate([x] * len(substitutes)),
    (codes, pyramid.predict_top(codes)),
  )
  found = []
  for number, (level, compressed) in enumerate(
    zip(pyramid.levels, codes.levels, strict=True)
  ):
    quantized = compressed.quantized
    # The last code of a dictionary spells nothing.
    last = level.config.quantizer.num_codes - 1
    vectors_NUD, codes_NU1 = (
      jnp.concatenate(
        [
          substitute(
            x,
            compressed.is_code_BU,
            level.config.pooling.num_queries,
            name,
            nothing,
          )
          for name in substitutes
        ]
      )
      for x, nothing in (
        (quantized.vectors_BPD, 0),
        (quantized.codes_BP[..., None], last),
      )
    )
    expanded = pyramid.expand(
      repeated, top_lm, number, vectors_NUD, codes_NU1[..., 0]
    )
    is_id_NS = repeated.batches[number].document_BS >= 0
    parts = jnp.split(row_bits(expanded.nats_BS, is_id_NS), len(substitutes))
    found.append(dict(zip(substitutes, parts, strict=True)))
  return codes, tuple(found)


def _decode(
  variables: PyTree, codes: PyramidCodes, model: AbstractinatorPyramid
) -> DecodedRows:
  """Decodes encoded rows from their top codes alone."""
  top = codes.levels[-1]
  lowest_BP = segmentation.per_slot(
    segmentation.first_slots(top.segments, codes.batches[-1].document_BS),
    top.segments,
    top.is_valid_BP.shape[1],
  )
  decoded = model.apply(
    variables,
    top.quantized.codes_BP,
    top.is_valid_BP,
    lowest_BP,
    sequence_length=codes.batches[0].ids_BS.shape[1],
    method='decode_all',
  )
  return cast(DecodedRows, decoded)
