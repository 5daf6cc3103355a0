"""Rows to codes and back: all that is measured of disjoint windows."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.evaluation.reconstruction import decode_output
from abstractinator.model.compressor import CompressorOutput
from abstractinator.model.pyramid import (
  DecodedRows,
  PyramidOutput,
)
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Batch, Mean, PyTree

MEMORIES = ('true', 'zeroed', 'shuffled')


@flax.struct.dataclass
class CodedLevel:
  """Of one level.

  Attributes:
    index_BS: [B, S] int32, segment of each id; -1 on padding.
    entropy_bits_BS: [B, S] float32, entropy that cut segments; arbitrary on
      padding.
    bits_BS: [B, S] float32, what ids cost under the entropy model; 0 on
      padding.
    is_short_BS: [B, S] bool, ids cut for want of slots.
    codes_BU: [B, U] int32.
    is_code_BU: [B, U] bool.
  """

  index_BS: Array
  entropy_bits_BS: Array
  bits_BS: Array
  is_short_BS: Array
  codes_BU: Array
  is_code_BU: Array


@flax.struct.dataclass
class CodedRows:
  """What there is to say of rows.

  Attributes:
    levels: Bottom first.
    sums: For each level, bits of the ids of each row under the expander, by the
      kind of codes in `MEMORIES` that it is given, [B] float32 each.
    top_document_BU: [B, U] int32, document of each top code; -1 of none.
    accuracy: Right bytes of those decoded, see `free_running_counts`; None
      where nothing was decoded.
    decoded: Bytes of the top codes; likewise.
  """

  levels: tuple[CodedLevel, ...]
  sums: tuple[dict[str, Array], ...]
  top_document_BU: Array
  accuracy: Mean | None
  decoded: DecodedRows | None


def code_rows(
  variables: PyTree,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
  decode: bool,
) -> CodedRows:
  """Encodes rows, decodes them, and takes the codes away from the expander.

  Args:
    variables: `params` and the collections.
    batch: Rows.
    model: All levels.
    decode: Whether to decode them from their codes alone.

  Returns:
    All of it.
  """
  output, sums = model.apply(
    variables, batch, MEMORIES, method=with_other_memories
  )
  accuracy = decoded = None
  if decode:
    accuracy, decoded = decode_output(variables, output, batch, model=model)
  return CodedRows(
    levels=tuple(coded_level(level.compressed) for level in output.levels),
    sums=sums,
    top_document_BU=output.top_codes.document_BP,
    accuracy=accuracy,
    decoded=decoded,
  )


def code_levels(
  variables: PyTree, batch: Batch, *, model: AbstractinatorPyramid
) -> tuple[CodedLevel, ...]:
  """Encodes rows, and no more."""
  output = model.apply(variables, batch, method='compress_all')
  return tuple(coded_level(level.compressed) for level in output.levels)


def slots_of_bytes(
  levels: tuple[CodedLevel, ...], num_queries: tuple[int, ...]
) -> list[np.ndarray]:
  """The segment of each level that a byte is in, on the host.

  Args:
    levels: Bottom first.
    num_queries: Codes of a segment, of each level.

  Returns:
    Of each level [B, S] int; -1 of padding.
  """
  found, code_BS = [], None
  for level, queries in zip(levels, num_queries, strict=True):
    slot_BS = np.asarray(level.index_BS)
    if code_BS is not None:
      at_BS = np.maximum(code_BS, 0)
      slot_BS = np.take_along_axis(slot_BS, at_BS, axis=1)
      slot_BS = np.where(code_BS >= 0, slot_BS, -1)
    found.append(slot_BS)
    # The first code of a segment stands for it.
    code_BS = np.where(slot_BS >= 0, slot_BS * queries, -1)
  return found


def coded_level(compressed: CompressorOutput) -> CodedLevel:
  """What is counted of the segments and codes of a level."""
  segments = compressed.segments
  is_id_BS = segments.index_BS >= 0
  return CodedLevel(
    index_BS=segments.index_BS,
    entropy_bits_BS=compressed.entropy_bits_BS,
    bits_BS=jnp.where(is_id_BS, compressed.entropy_nats_BS * BITS_PER_NAT, 0.0),
    is_short_BS=segments.is_capacity_bound_BS,
    codes_BU=compressed.quantized.codes_BP,
    is_code_BU=compressed.is_code_BU,
  )


def other_memory(
  memory_BUD: Array, is_code_BU: Array, num_queries: int, kind: str
) -> Array:
  """Codes in the place of those of the segments.

  Args:
    memory_BUD: [B, U, D], vectors of the codes.
    is_code_BU: [B, U] bool, those that are there, the first ones of a row.
    num_queries: Codes of a segment.
    kind: 'true', 'zeroed', or 'shuffled': each segment gets the codes of the
      one half a row further on, around its end. Rows stay apart, so that it
      does not matter which of them share a batch.

  Returns:
    [B, U, D].
  """
  if kind == 'true':
    return memory_BUD
  if kind == 'zeroed':
    return jnp.zeros_like(memory_BUD)
  count_B1 = jnp.sum(is_code_BU, axis=1, keepdims=True)
  by_B1 = count_B1 // num_queries // 2 * num_queries
  at_U = jnp.arange(memory_BUD.shape[1])
  from_BU = (at_U + by_B1) % jnp.maximum(count_B1, 1)
  from_BU = jnp.where(is_code_BU, from_BU, at_U)
  return jnp.take_along_axis(memory_BUD, from_BU[..., None], axis=1)


def with_other_memories(
  pyramid: AbstractinatorPyramid, batch: Batch, kinds: Sequence[str]
) -> tuple[PyramidOutput, tuple[dict[str, Array], ...]]:
  """Encodes rows and scores their ids given codes that are not theirs.

  Args:
    pyramid: All levels.
    batch: Rows.
    kinds: Some of `MEMORIES`.

  Returns:
    Output of the pyramid, without predictions; and `sums` of `CodedRows`.
  """
  output = pyramid.compress_all(batch)
  sums, codebooks = [], None
  for level, of_level, ids in zip(
    pyramid.levels,
    output.levels,
    output.batches,
    strict=True,
  ):
    compressed = of_level.compressed
    memory_NUD = jnp.concatenate(
      [
        other_memory(
          compressed.quantized.vectors_BPD,
          compressed.is_code_BU,
          level.config.pooling.num_queries,
          kind,
        )
        for kind in kinds
      ]
    )
    # All kinds as one batch: one expander to compile.
    ids, segments = jax.tree.map(
      lambda x: jnp.concatenate([x] * len(kinds)), (ids, compressed.segments)
    )
    expanded = level.expander(
      ids.ids_BS, ids.document_BS, segments, memory_NUD, codebooks=codebooks
    )
    bits = jnp.split(_bits(expanded.nats_BS, ids), len(kinds))
    sums.append(dict(zip(kinds, bits, strict=True)))
    codebooks = level.compressor.quantizer.codebooks()
  return output, tuple(sums)


def _bits(nats_BS, batch):
  is_id_BS = batch.document_BS >= 0
  return BITS_PER_NAT * jnp.sum(jnp.where(is_id_BS, nats_BS, 0.0), axis=1)
