"""The beginnings of rows, compressed at once for a stream to go on from there.

See `compressor_stream`, also for how to call these functions.
"""

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.modules.compressor_stream import (
  StreamOutput,
  StreamState,
  look_ahead,
  output_of,
)
from abstractinator.modules.entropy_output import predictive_entropy_bits
from abstractinator.modules.quantizer import QuantizerOutput
from abstractinator.modules.segment_compressor import Below, SegmentCompressor
from abstractinator.ops import (
  running_pool,
  sampling,
  segmentation,
  segmentation_stream,
)
from abstractinator.ops.segment_pool import segment_pool
from abstractinator.ops.segmentation_rules import wishes
from abstractinator.types import Array, Segments


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
