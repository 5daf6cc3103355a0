"""The beginnings of rows, compressed at once for a stream to go on from there.

See `compressor_stream`, also for how to call these functions.
"""

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.model.compressor import Below, SegmentCompressor
from abstractinator.model.entropy_model import (
  EntropyCache,
  EntropyOutput,
  predictive_entropy_bits,
)
from abstractinator.model.quantizers import QuantizerOutput
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops import (
  running_pool,
  sampling,
  segmentation,
  segmentation_stream,
)
from abstractinator.ops.cache import Cache
from abstractinator.ops.running_pool import RunningPool
from abstractinator.ops.segment_pool import segment_pool
from abstractinator.ops.segmentation_rules import wishes
from abstractinator.ops.segmentation_stream import SegmenterState
from abstractinator.types import Array, PyTree, Segments


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


@flax.struct.dataclass
class Prefix:
  """What was compressed before the first step, as in a `CompressorOutput`.

  Slots are as many as ids, so that they never bind. The last segment of a row
  is whole if the output of its last id says so; else it goes on in the steps.

  Attributes:
    entropy_bits_BS: [B, S] float32, of the prediction of each id.
    segments: Where the ids were cut.
    pooled_BUD: [B, U, D] segments before quantization.
    quantized: Codes and their vectors.
  """

  entropy_bits_BS: Array
  segments: Segments
  pooled_BUD: Array
  quantized: QuantizerOutput


def start(
  compressor: SegmentCompressor, batch_size: int, capacity: int
) -> StreamState:
  """Rows before their first id, which is predicted.

  Args:
    compressor: Bound.
    batch_size: B.
    capacity: Ids that a row may come to; of no concern to stacks with a window.
      What a stack without one makes of more ids is NaN.

  Returns:
    The state.
  """
  no_ids_BS = jnp.zeros((batch_size, 1), jnp.int32)
  none_B = jnp.zeros(batch_size, bool)
  return prefill(
    compressor, no_ids_BS, no_ids_BS - 1, none_B, capacity=capacity
  )[2]


def prefill(
  compressor: SegmentCompressor,
  ids_BS: Array,
  document_BS: Array,
  is_last_B: Array,
  *,
  capacity: int,
  below: Below | None = None,
) -> tuple[Prefix, StreamOutput, StreamState]:
  """Compresses the beginnings of rows at once, to go on from there.

  Args:
    compressor: Bound.
    ids_BS: [B, S] int32.
    document_BS: [B, S] int32, counted from 0 in each row; -1 on padding, which
      only ends a row.
    is_last_B: [B] bool, the last id of a row is the last of its document; of
      no concern to rows without ids.
    capacity: See `start`; at least S.
    below: Of ids that are codes. Only ids of a first level go on in `step`.

  Returns:
    What is compressed, the output of the last id of each row, which means
    nothing where there is none, and the state after it.

  Raises:
    ValueError: If a stack has no window and rows are longer than the capacity.
  """
  batch, size = ids_BS.shape
  heads = compressor.config.entropy_heads
  codebooks = None if below is None else below.codebooks
  # One prediction more than ids: that of the id after them.
  predicted, entropy_cache = compressor.entropy_model.prefill(
    ids_BS,
    document_BS,
    compressor.entropy_model.init_cache(batch, capacity + 1, compressor.dtype),
    codebooks,
  )
  entropy_bits_BS = predictive_entropy_bits(predicted, heads)
  if below is None:
    surprisal_bits_BS = sampling.surprisal_bits(predicted.logits, ids_BS)
  else:
    nats_BS = compressor.entropy_model.nats(ids_BS, predicted, codebooks)
    surprisal_bits_BS = nats_BS * sampling.BITS_PER_NAT
  known = segmentation.known_before(
    ids_BS, document_BS, entropy_bits_BS, surprisal_bits_BS
  )
  policy = compressor.segmentation_policy()
  wish = wishes(known, policy)
  segments = segmentation.segment(
    wish,
    document_BS,
    min_length=policy.min_length,
    max_length=policy.max_length,
    num_slots=size,
  )
  states_BSD, encoder_cache = compressor.encoder.prefill(
    compressor.inputs(ids_BS, below),
    document_BS,
    compressor.encoder.init_cache(batch, capacity, compressor.dtype),
  )
  num_ids_B = jnp.sum(document_BS >= 0, axis=1, dtype=jnp.int32)
  row_B, last_B = jnp.arange(batch), jnp.maximum(num_ids_B - 1, 0)
  open_B = segments.index_BS[row_B, last_B]

  def pool(score_BSQH, value_BSHA):
    pooled_BPQHA = segment_pool(
      score_BSQH,
      value_BSHA,
      segments.index_BS,
      num_slots=size,
      implementation=compressor.implementation.segment_pool,
    )
    is_open_BS = segments.index_BS == open_B[:, None]
    is_open_BS &= document_BS >= 0
    return pooled_BPQHA, running_pool.of_rows(
      score_BSQH, value_BSHA[:, :, None], is_open_BS
    )

  pooled_BUD, open_pool = compressor.pooling.pool_by(pool, states_BSD)
  queries = compressor.config.pooling.num_queries
  is_valid_BP = jnp.arange(size) < segments.count_B[:, None]
  is_code_BU = jnp.repeat(is_valid_BP, queries, axis=1)
  prefix = Prefix(
    entropy_bits_BS=entropy_bits_BS,
    segments=segments,
    pooled_BUD=pooled_BUD,
    quantized=compressor.quantizer(pooled_BUD, is_code_BU, row_B),
  )
  is_empty_B = num_ids_B == 0
  state = StreamState(
    # Both are still to come, of the next id.
    predicted=jax.tree.map(lambda x: x[:, 0], predicted),
    opens_B=jnp.zeros(batch, bool),
    pooled_BQD=pooled_BUD.reshape(batch, size, queries, -1)[
      row_B, jnp.maximum(open_B, 0)
    ],
    pool=open_pool,
    segmenter=segmentation_stream.state_after(
      known, wish, segments, document_BS
    ),
    entropy_cache=entropy_cache,
    encoder_cache=encoder_cache,
  )
  state = look_ahead(
    compressor,
    state,
    ids_BS[row_B, last_B],
    surprisal_bits_BS[row_B, last_B],
    is_last_B | is_empty_B,
    jnp.ones(batch, bool),
    codebooks,
  )
  is_start_B = segments.is_start_BS[row_B, last_B]
  return prefix, output_of(compressor, state, is_start_B, ~is_empty_B), state
