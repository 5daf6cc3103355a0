"""A compressor of ids that come one at a time.

The functions take a bound `SegmentCompressor` first, so that they serve as
methods of it: `compressor.apply(variables, ..., method=compressor_stream.step)`
or `lambda level, *args: step(level.compressor, *args)` of a level.

A stream is one id ahead of its rows: before an id comes, it has been predicted
and it has been decided whether it opens a segment. So the step that takes the
last id of a segment gives the segment's code, and predictions, boundaries and
codes are those of the whole row, `SegmentCompressor.__call__`, in which slots
do not bind. A stream reads state (codebook, threshold) and changes none of it.
"""

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.modules.entropy_model import EntropyCache
from abstractinator.modules.entropy_output import (
  EntropyOutput,
  predictive_entropy_bits,
)
from abstractinator.modules.quantizer import QuantizerOutput
from abstractinator.modules.segment_compressor import SegmentCompressor
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops import (
  running_pool,
  sampling,
  segmentation_stream,
)
from abstractinator.ops.cache import Cache
from abstractinator.ops.running_pool import RunningPool
from abstractinator.ops.segmentation_stream import SegmenterState
from abstractinator.types import Array, PyTree


@flax.struct.dataclass
class StreamState:
  """Where each row of a stream stands.

  Attributes:
    predicted: [B], prediction of the next id.
    opens_B: [B] bool, the next id opens a segment.
    pooled_BQD: [B, Q, D], the open segment so far, as if it ended here.
    pool: What it is made of.
    segmenter: What boundaries depend on; its `document_B` is the document of
      the next id.
    entropy_cache: Of the entropy model.
    encoder_cache: Of the encoder.
  """

  predicted: EntropyOutput
  opens_B: Array
  pooled_BQD: Array
  pool: RunningPool
  segmenter: SegmenterState
  entropy_cache: EntropyCache
  encoder_cache: Cache


@flax.struct.dataclass
class SegmentEnd:
  """Segments that ended.

  Attributes:
    is_end_B: [B] bool, rows in which one did; the rest means nothing elsewhere.
    pooled_BQD: [B, Q, D] before quantization.
    quantized: [B, Q], codes and their vectors.
  """

  is_end_B: Array
  pooled_BQD: Array
  quantized: QuantizerOutput


@flax.struct.dataclass
class StreamOutput:
  """What a step says of the id it took.

  Attributes:
    is_start_B: [B] bool, the id opened a segment; False where there was none.
    entropy_bits_B: [B] float32, entropy of the prediction of the next id.
    end: The segment, where the id is its last.
  """

  is_start_B: Array
  entropy_bits_B: Array
  end: SegmentEnd


def step(
  compressor: SegmentCompressor,
  id_B: Array,
  is_last_B: Array,
  active_B: Array,
  state: StreamState,
) -> tuple[StreamOutput, StreamState]:
  """Takes one id a row.

  Args:
    compressor: Bound.
    id_B: [B] int32.
    is_last_B: [B] bool, the id is the last of its document: its segment ends,
      and what follows is predicted from nothing.
    active_B: [B] bool, rows that have an id; the others stay as they are.
    state: From `compressor_prefill` or the step before.

  Returns:
    What there is to say of the ids, and the state after them.
  """
  encoded_BD, encoder_cache = compressor.encoder.step(
    compressor.embed(id_B),
    state.segmenter.document_B,
    state.encoder_cache,
    active_B,
  )

  def pool(score_BSQH, value_BSHA):
    # All queries share the values.
    new = running_pool.add(
      state.pool, score_BSQH[:, 0], value_BSHA[:, :1], state.opens_B
    )
    return running_pool.mean(new)[:, None].astype(value_BSHA.dtype), new

  pooled_BQD, new_pool = compressor.pooling.pool_by(pool, encoded_BD[:, None])
  after = state.replace(
    pooled_BQD=_where(active_B, pooled_BQD, state.pooled_BQD),
    pool=_where(active_B, new_pool, state.pool),
    encoder_cache=encoder_cache,
  )
  surprisal_bits_B = sampling.surprisal_bits(state.predicted.logits, id_B)
  after = look_ahead(
    compressor, after, id_B, surprisal_bits_B, is_last_B, active_B
  )
  is_start_B = state.opens_B & active_B
  return output_of(compressor, after, is_start_B, active_B), after


def finish(compressor: SegmentCompressor, state: StreamState) -> SegmentEnd:
  """Ends the open segments, for rows that nothing follows.

  Args:
    compressor: Bound.
    state: After the last id.

  Returns:
    The segments that no step has given.
  """
  return _end(compressor, state, ~state.opens_B)


def look_ahead(
  compressor: SegmentCompressor,
  state: StreamState,
  id_B: Array,
  surprisal_bits_B: Array,
  is_last_B: Array,
  active_B: Array,
  codebooks: Codebooks | None = None,
) -> StreamState:
  """Predicts the next id and decides whether it opens a segment.

  Args:
    compressor: Bound.
    state: After the last id, but for what is said of the next one.
    id_B: [B] int32, the last id; anything where the next begins a document.
    surprisal_bits_B: [B] float32, -log2 p of the last id, likewise.
    is_last_B: [B] bool, the next id begins a document.
    active_B: [B] bool, rows to look ahead in; the others stay as they are.
    codebooks: See `Vocabulary`; of ids that are codes.

  Returns:
    The state.
  """
  document_B = state.segmenter.document_B + is_last_B
  predicted, entropy_cache = compressor.entropy_model.step(
    id_B, document_B, state.entropy_cache, active_B, codebooks
  )
  segmenter, opens_B = segmentation_stream.step(
    state.segmenter,
    compressor.segmentation_policy(),
    entropy_bits_B=predictive_entropy_bits(
      predicted, compressor.config.entropy_heads
    ),
    document_B=jnp.where(active_B, document_B, -1),
    last_id_B=id_B,
    last_surprisal_bits_B=surprisal_bits_B,
  )
  return state.replace(
    predicted=_where(active_B, predicted, state.predicted),
    opens_B=jnp.where(active_B, opens_B, state.opens_B),
    segmenter=segmenter,
    entropy_cache=entropy_cache,
  )


def output_of(
  compressor: SegmentCompressor,
  state: StreamState,
  is_start_B: Array,
  active_B: Array,
) -> StreamOutput:
  """What the state after ids says of them."""
  return StreamOutput(
    is_start_B=is_start_B,
    entropy_bits_B=state.segmenter.last_entropy_bits_B,
    end=_end(compressor, state, state.opens_B & active_B),
  )


def _end(
  compressor: SegmentCompressor, state: StreamState, is_end_B: Array
) -> SegmentEnd:
  row_B = jnp.arange(is_end_B.shape[0])
  is_valid_BQ = jnp.broadcast_to(is_end_B[:, None], state.pooled_BQD.shape[:2])
  return SegmentEnd(
    is_end_B=is_end_B,
    pooled_BQD=state.pooled_BQD,
    quantized=compressor.quantizer(state.pooled_BQD, is_valid_BQ, row_B),
  )


def _where(active_B: Array, new: PyTree, old: PyTree) -> PyTree:
  """Rows of `new` where active, else of `old`."""

  def choose(new_BX, old_BX):
    shape = (-1, *(1,) * (new_BX.ndim - 1))
    return jnp.where(active_B.reshape(shape), new_BX, old_BX)

  return jax.tree.map(choose, new, old)
