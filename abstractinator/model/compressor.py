"""Compressor of a level: ids in, one code per segment out, or a few."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import LevelConfig
from abstractinator.model import layers
from abstractinator.model.dictionary_quantizer import DictionaryQuantizer
from abstractinator.model.entropy_model import (
  EntropyCache,
  EntropyModel,
  EntropyOutput,
  Prior,
  predictive_entropy_bits,
)
from abstractinator.model.pooling import LearnedQueryAttention
from abstractinator.model.quantizer_kinds import QUANTIZERS
from abstractinator.model.quantizers import QuantizerOutput
from abstractinator.model.transformer import Stack
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops import (
  calibration,
  dictionary,
  sampling,
  segmentation,
  segmentation_stream,
)
from abstractinator.ops.cache import Cache
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation_rules import (
  RULES,
  Known,
  Policy,
  Wishes,
  wishes,
)
from abstractinator.ops.segmentation_stream import SegmenterState
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array, Segments, Special


@flax.struct.dataclass
class Below:
  """Vectors and codebooks of the level below, whose codes are a level's ids.

  Attributes:
    vectors_BSD: Codes as continuous vectors, [B, S, D of the level below], with
      a gradient to that level (straight-through).
    codebooks: Tables that embed and predict the codes, M arrays [K, C], without
      gradient; None if the quantizer below has none.
  """

  vectors_BSD: Array
  codebooks: Codebooks | None


@flax.struct.dataclass
class CompressorOutput:
  """Segments and codes of rows of ids, and the predictions that divided them.

  Attributes:
    entropy_logits_BSV: Logits by which the entropy model predicts each id from
      the ids before it, [B, S, V] float32; if ids are codes, those of their
      first digit.
    entropy_states_BSD: States from which the entropy model predicts each id,
      [B, S, D].
    entropy_nats_BS: -log p of each id in that prediction, all digits together,
      [B, S] float32.
    entropy_bits_BS: Entropy of the prediction, which decided where segments
      begin, [B, S] float32 without gradient; see `predictive_entropy_bits`.
    gaussian_nats_BS: -log density of the embedding of each id, nats per
      dimension, [B, S] float32; None without a Gaussian head.
    segments: Division of the rows into segments.
    is_valid_BP: True for slots that hold a segment, [B, P] bool.
    is_code_BU: True for the codes of such slots, [B, U] bool.
    pooled_BUD: Vectors of the segments before quantization, [B, U, D].
    quantized: Codes and their vectors.
    soft_digits: Soft assignment of segments to digits, M arrays [B, U, K]
      float32; None without `quantizer.rate_temperature`.
  """

  entropy_logits_BSV: Array
  entropy_states_BSD: Array
  entropy_nats_BS: Array
  entropy_bits_BS: Array
  gaussian_nats_BS: Array | None
  segments: Segments
  is_valid_BP: Array
  is_code_BU: Array
  pooled_BUD: Array
  quantized: QuantizerOutput
  soft_digits: tuple[Array, ...] | None = None

  @property
  def prior(self) -> Prior:
    """Predictions of the ids without their codes, without gradient."""
    return Prior(
      *lax.stop_gradient((self.entropy_states_BSD, self.entropy_logits_BSV))
    )


@flax.struct.dataclass
class CompressorState:
  """State of the entropy path after the last id of each row.

  The next id of each row has been predicted, and it is decided whether it opens
  a segment; so generation goes on from here.

  Attributes:
    predicted: Prediction of the next id, [B].
    opens_B: True if the next id opens a segment, [B] bool.
    segmenter: State that the boundaries after it depend on.
    entropy_cache: KV caches of the entropy model.
  """

  predicted: EntropyOutput
  opens_B: Array
  segmenter: SegmenterState
  entropy_cache: EntropyCache


class SegmentCompressor(nn.Module):
  """Entropy model, segmentation, encoder, pooling and quantizer of a level.

  The entropy path decides where segments begin, the compression path which
  codes they get; they share no parameter, and no gradient passes from one to
  the other. Above the first level the entropy path reads codes, embedded
  through the codebooks of the level below, and the compression path reads the
  vectors of that level.

  Attributes:
    config: Sizes and settings of the level.
    num_ids: Number of ordinary ids; the special ids follow them.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
    child: Config of the level below, whose codes the ids are; None for bytes.

  Parameters:
    entropy_model, encoder, pooling, quantizer: Parameters of an `EntropyModel`,
      a `Stack`, a `LearnedQueryAttention` and a `Quantizer`.
    embed/embedding: Embeddings of bytes for the encoder, [V, D].
    project/kernel: Map from the width of the vectors below to D, if they
      differ.

  Collections:
    vq: State of the quantizer; see `VectorQuantizer`.
    calibration: `threshold`, a `calibration.ThresholdState`. A forward pass
      with it mutable adds to the sums of the step; `calibration.advance` does
      the rest.
  """

  config: LevelConfig
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype
  child: LevelConfig | None = None

  def setup(self) -> None:
    c, ops, dtype = self.config, self.implementation, self.dtype
    self.entropy_model = EntropyModel(
      c.entropy_model,
      c.entropy_heads,
      c.d_model,
      self.num_ids,
      ops,
      dtype,
      child=self.child,
    )
    if self.child is None:
      self.embed = layers.embed(self.num_ids + len(Special), c.d_model, dtype)
    elif self.child.d_model != c.d_model:
      self.project = nn.Dense(c.d_model, use_bias=False, dtype=dtype)
    self.encoder = Stack(c.encoder, c.d_model, ops, dtype)
    self.pooling = LearnedQueryAttention(
      c.pooling.num_heads, c.pooling.num_queries, ops, dtype
    )
    self.quantizer = QUANTIZERS[c.quantizer.kind](
      c.quantizer, c.d_model, ops, dtype, c.segmentation.max_length
    )
    self.threshold = self.variable(
      'calibration',
      'threshold',
      calibration.initial_state,
      c.segmentation.threshold,
      c.segmentation.target_length,
      c.segmentation.calibration_step,
      RULES[c.segmentation.rule].move,
    )

  def __call__(
    self,
    ids_BS: Array,
    document_BS: Array,
    row_B: Array,
    below: Below | None = None,
  ) -> CompressorOutput:
    """Compresses rows.

    Args:
      ids_BS: Ids, [B, S] int32.
      document_BS: Document of each id, [B, S] int32; see `Batch`.
      row_B: Identity of each row, [B] int32; see `Batch`.
      below: Vectors and codebooks of the level below, if ids are its codes.

    Returns:
      Segments and codes, and the predictions that divided the rows.
    """
    codebooks = None if below is None else below.codebooks
    predicted = self.entropy_model(ids_BS, document_BS, codebooks)
    num_slots = self.config.segmentation.num_slots(ids_BS.shape[1])
    output, _, _ = self._compress(
      ids_BS, document_BS, row_B, below, predicted, num_slots
    )
    if self.is_mutable_collection('calibration') and not self.is_initializing():
      self.threshold.value = calibration.observe(
        self.threshold.value, output.segments
      )
    return output

  def prefill(
    self,
    ids_BS: Array,
    document_BS: Array,
    *,
    capacity: int,
    below: Below | None = None,
  ) -> tuple[CompressorOutput, CompressorState]:
    """Compresses the beginnings of rows, for generation to go on from there.

    There are as many slots as ids, so that slots never run short.

    Args:
      ids_BS: Ids, [B, S] int32.
      document_BS: Document of each id, [B, S] int32, counted from 0 in each
        row; -1 on padding, which only ends a row.
      capacity: Most ids that a row may come to, at least S; ignored by an
        entropy model with a window. A model without one predicts NaN beyond.
      below: Vectors and codebooks of the level below, if ids are its codes.

    Returns:
      The output of a call, and the state after the last id of each row. The
      last segment of a row is whole if the state says that the next id opens
      one.

    Raises:
      ValueError: If the entropy model has no window and rows are longer than
        the capacity.
    """
    batch, size = ids_BS.shape
    codebooks = None if below is None else below.codebooks
    predicted, cache = self.entropy_model.prefill(
      ids_BS,
      document_BS,
      # One more than ids: that of the id after them.
      self.entropy_model.init_cache(batch, capacity + 1, self.dtype),
      codebooks,
    )
    row_B = jnp.arange(batch)
    output, known, wish = self._compress(
      ids_BS, document_BS, row_B, below, predicted, size
    )
    num_ids_B = jnp.sum(document_BS >= 0, axis=1, dtype=jnp.int32)
    last_B = jnp.maximum(num_ids_B - 1, 0)
    segmenter = segmentation_stream.state_after(
      known, wish, output.segments, document_BS
    )
    # A row without ids, whose document is -1, begins its first.
    document_B = jnp.maximum(segmenter.document_B, 0)
    last_id_B = ids_BS[row_B, last_B]
    predicted, cache = self.entropy_model.step(
      last_id_B, document_B, cache, jnp.ones(batch, bool), codebooks
    )
    nats_B = output.entropy_nats_BS[row_B, last_B]
    segmenter, opens_B = segmentation_stream.step(
      segmenter,
      self.segmentation_policy(),
      entropy_bits_B=predictive_entropy_bits(
        predicted, self.config.entropy_heads
      ),
      document_B=document_B,
      last_id_B=last_id_B,
      last_surprisal_bits_B=nats_B * sampling.BITS_PER_NAT,
    )
    return output, CompressorState(predicted, opens_B, segmenter, cache)

  def predict(
    self, ids_BS: Array, document_BS: Array
  ) -> tuple[EntropyOutput, Array, Array | None]:
    """Runs the entropy model alone, over bytes.

    Args:
      ids_BS: Bytes, [B, S] int32.
      document_BS: Document of each byte, [B, S] int32; see `Batch`.

    Returns:
      Its predictions, and the `entropy_nats_BS` and `gaussian_nats_BS` of a
      `CompressorOutput`.
    """
    predicted = self.entropy_model(ids_BS, document_BS)
    return predicted, *self._nats(ids_BS, predicted, None)

  def read(
    self,
    ids_BS: Array,
    document_BS: Array,
    segments: Segments,
    cache: Cache,
    below: Below | None = None,
  ) -> Cache:
    """Runs the encoder alone over rows, for `read_next` to go on from there.

    Args:
      ids_BS: Ids, [B, S] int32.
      document_BS: Document of each id, [B, S] int32; -1 on padding, which only
        ends a row.
      segments: Division of the ids.
      cache: Cache of the encoder; its content is replaced.
      below: Vectors and codebooks of the level below, if ids are its codes.

    Returns:
      The cache after the last id of each row.
    """
    group_BS = document_BS
    if self.config.encoder_context == 'segment':
      group_BS = jnp.where(document_BS >= 0, segments.index_BS, -1)
    x_BSD = self._encoder_inputs(ids_BS, below)
    return self.encoder.prefill(x_BSD, group_BS, cache)[1]

  def read_next(
    self,
    ids_B: Array,
    group_B: Array,
    cache: Cache,
    active_B: Array,
    below: Below | None = None,
  ) -> tuple[Array, Cache]:
    """Runs the encoder over the next id of each row.

    Args:
      ids_B: Ids, [B] int32.
      group_B: Document of each id, or its segment with `encoder_context`
        'segment', [B] int32.
      cache: Cache of the encoder after the ids before.
      active_B: True for rows that have an id, [B] bool; see `Stack.step`.
      below: Vectors of the ids, [B, 1, D], if they are codes.

    Returns:
      States, [B, D], and the cache.
    """
    x_B1D = self._encoder_inputs(ids_B[:, None], below)
    return self.encoder.step(x_B1D[:, 0], group_B, cache, active_B)

  def pool(self, states_BLD: Array, length_B: Array) -> Array:
    """Pools one segment of each row, as the call does with Q = 1.

    Args:
      states_BLD: States of the encoder for the ids of the segment, [B, L, D].
      length_B: Number of these ids, [B] int32.

    Returns:
      Vectors before quantization, [B, D].
    """
    is_id_BL = jnp.arange(states_BLD.shape[1]) < length_B[:, None]
    index_BL = jnp.where(is_id_BL, 0, -1)
    return self.pooling(states_BLD, index_BL, 1)[:, 0]

  def segmentation_policy(self) -> Policy:
    """Returns the settings of the segmentation, with the current threshold."""
    c = self.config.segmentation
    return Policy(
      self.threshold.value.threshold, c.rule, c.min_length, c.max_length
    )

  def _compress(
    self,
    ids_BS: Array,
    document_BS: Array,
    row_B: Array,
    below: Below | None,
    predicted: EntropyOutput,
    num_slots: int,
  ) -> tuple[CompressorOutput, Known, Wishes]:
    """Divides rows as the predictions of their ids say, and encodes segments.

    Returns:
      The output, and what was known before each id and what came of that.
    """
    codebooks = None if below is None else below.codebooks
    nats_BS, gaussian_nats_BS = self._nats(ids_BS, predicted, codebooks)
    # No gradient reaches the entropy model through the division.
    fixed, fixed_nats_BS = lax.stop_gradient((predicted, nats_BS))
    entropy_bits_BS = predictive_entropy_bits(fixed, self.config.entropy_heads)
    known = segmentation.known_before(
      ids_BS,
      document_BS,
      entropy_bits_BS,
      fixed_nats_BS * sampling.BITS_PER_NAT,
    )
    policy = self.segmentation_policy()
    wish = wishes(known, policy)
    segments = segmentation.segment(
      wish,
      document_BS,
      min_length=policy.min_length,
      max_length=policy.max_length,
      num_slots=num_slots,
    )
    index_BS = segments.index_BS
    states_BSD = self.encoder(
      self._encoder_inputs(ids_BS, below),
      index_BS if self.config.encoder_context == 'segment' else document_BS,
    )
    pooled_BUD = by_rows(self.pooling(states_BSD, index_BS, num_slots))
    is_valid_BP = jnp.arange(num_slots) < segments.count_B[:, None]
    is_code_BU = jnp.repeat(is_valid_BP, self.pooling.num_queries, axis=1)
    quantized, soft_digits = self._quantize(
      ids_BS, segments, pooled_BUD, is_code_BU, row_B
    )
    output = CompressorOutput(
      entropy_logits_BSV=predicted.logits,
      entropy_states_BSD=predicted.states,
      entropy_nats_BS=nats_BS,
      entropy_bits_BS=entropy_bits_BS,
      gaussian_nats_BS=gaussian_nats_BS,
      segments=segments,
      is_valid_BP=is_valid_BP,
      is_code_BU=is_code_BU,
      pooled_BUD=pooled_BUD,
      quantized=quantized,
      soft_digits=soft_digits,
    )
    return output, known, wish

  def _quantize(
    self,
    ids_BS: Array,
    segments: Segments,
    pooled_BUD: Array,
    is_code_BU: Array,
    row_B: Array,
  ) -> tuple[QuantizerOutput, tuple[Array, ...] | None]:
    """Returns the codes of segments and `soft_digits` of the output."""
    quantizer = self.quantizer
    if isinstance(quantizer, DictionaryQuantizer):
      ids_BPL = dictionary.segment_ids(
        ids_BS, segments, is_code_BU.shape[1], quantizer.max_length
      )
      return quantizer.look_up(ids_BPL), None
    quantized = quantizer(pooled_BUD, is_code_BU, row_B)
    temperature = quantizer.config.rate_temperature
    if temperature is None:
      return quantized, None
    return quantized, quantizer.soft_digits(pooled_BUD, temperature)

  def _nats(
    self, ids_BS: Array, predicted: EntropyOutput, codebooks: Codebooks | None
  ) -> tuple[Array, Array | None]:
    """Returns `entropy_nats_BS` and `gaussian_nats_BS` of the output."""
    args = ids_BS, predicted, codebooks
    nats_BS = self.entropy_model.nats(*args)
    if predicted.mixture is None:
      return nats_BS, None
    return nats_BS, self.entropy_model.gaussian_nats(*args)

  def _encoder_inputs(self, ids_BS: Array, below: Below | None) -> Array:
    """Returns the vectors that the encoder reads, [B, S, D]."""
    if below is None:
      return self.embed(ids_BS)
    if self.child is None or self.child.d_model == self.config.d_model:
      return below.vectors_BSD
    return self.project(below.vectors_BSD)
