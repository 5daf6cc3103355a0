"""What comes out of a pyramid."""

from collections.abc import Callable

import flax.struct
import jax.numpy as jnp

from abstractinator.modules.abstractinator import LevelOutput
from abstractinator.modules.code_sequence_transformer import (
  CodeSequence,
  CodeSequenceOutput,
)
from abstractinator.modules.expander_output import ExpanderOutput
from abstractinator.modules.segment_compressor import CompressorOutput
from abstractinator.ops import segmentation
from abstractinator.ops.code_rows import CodeRows
from abstractinator.types import Array, Batch


@flax.struct.dataclass
class PyramidOutput:
  """What a pyramid makes of bytes; tuples are bottom first.

  Attributes:
    batches: Ids of each level: the bytes, then the codes of the level below.
    levels: What each level makes of them; `expanded` is None if only codes were
      asked for.
    top_codes: Of the top level.
    top_lm: Predictions of them; None without a top LM.
    top_lm_expanded: Ids of the top level, predicted from the codes that the top
      LM predicts in the place of the true ones; None without `top_lm.expand`.
  """

  batches: tuple[Batch, ...]
  levels: tuple[LevelOutput, ...]
  top_codes: CodeSequence
  top_lm: CodeSequenceOutput | None
  top_lm_expanded: ExpanderOutput | None = None


@flax.struct.dataclass
class BytePredictions:
  """What the entropy model of the first level says of bytes.

  Attributes:
    batch: The bytes.
    logits_BSV: [B, S, V] float32, of each id given those before it.
    nats_BS: [B, S] float32, -log p of each id.
    gaussian_nats_BS: As in `CompressorOutput`.
  """

  batch: Batch
  logits_BSV: Array
  nats_BS: Array
  gaussian_nats_BS: Array | None


@flax.struct.dataclass
class CodePredictions:
  """What the top LM says of codes that come from elsewhere.

  Attributes:
    top_codes: The codes.
    top_lm: Predictions of them.
  """

  top_codes: CodeSequence
  top_lm: CodeSequenceOutput


@flax.struct.dataclass
class DecodedRows:
  """Bytes that top codes decode to.

  Attributes:
    ids_BPL: [B, P, L] int32, ids of each segment of the first level.
    length_BP: [B, P] int32, how many of them hold; 0 in empty slots.
    rows: The codes they were decoded from.
  """

  ids_BPL: Array
  length_BP: Array
  rows: CodeRows


def code_sequence(
  compressed: CompressorOutput,
  batch: Batch,
  is_last_BS: Array,
  num_queries: int,
) -> CodeSequence:
  """The codes of rows, with their documents and the ends of those.

  Args:
    compressed: Of a level.
    batch: Its ids.
    is_last_BS: [B, S] bool, ids that are the last of their documents.
    num_queries: Q.

  Returns:
    Its codes.
  """
  is_valid_BP = compressed.is_valid_BP
  num_slots = is_valid_BP.shape[1]
  document_BP = segmentation.per_slot(
    batch.document_BS, compressed.segments, num_slots
  )
  is_end_BP = segmentation.per_slot_end(
    is_last_BS, compressed.segments, num_slots
  )
  document_BP = jnp.where(is_valid_BP, document_BP, -1)
  is_last_U = jnp.arange(num_slots * num_queries) % num_queries
  is_last_U = is_last_U == num_queries - 1
  return CodeSequence(
    codes_BP=compressed.quantized.codes_BP,
    vectors_BPD=compressed.quantized.vectors_BPD,
    document_BP=jnp.repeat(document_BP, num_queries, axis=1),
    is_end_BP=jnp.repeat(is_end_BP, num_queries, axis=1) & is_last_U,
  )


def read_sequence(
  batch: Batch, num_codes: int, lookup: Callable[[Array], Array]
) -> CodeSequence:
  """Codes that come as ids.

  Args:
    batch: Of codes, with `num_codes` added to the last one of a document.
    num_codes: Of the level.
    lookup: From codes to their vectors.

  Returns:
    The same.
  """
  is_code_BP = batch.document_BS >= 0
  codes_BP = jnp.where(is_code_BP, batch.ids_BS % num_codes, 0)
  return CodeSequence(
    codes_BP=codes_BP,
    vectors_BPD=lookup(codes_BP),
    document_BP=batch.document_BS,
    is_end_BP=is_code_BP & (batch.ids_BS >= num_codes),
  )
