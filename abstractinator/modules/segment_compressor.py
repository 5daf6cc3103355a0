"""Ids in, one code per segment out, or a few."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import LevelConfig
from abstractinator.modules import layers
from abstractinator.modules.blocks import Stack
from abstractinator.modules.entropy_model import EntropyModel
from abstractinator.modules.entropy_output import (
  EntropyOutput,
  predictive_entropy_bits,
)
from abstractinator.modules.learned_query_attention import (
  LearnedQueryAttention,
)
from abstractinator.modules.quantizer import QuantizerOutput
from abstractinator.modules.quantizers import QUANTIZERS
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops import calibration, sampling, segmentation
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation_rules import (
  RULES,
  Policy,
  check_rule,
  wishes,
)
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array, Segments, Special


@flax.struct.dataclass
class Below:
  """What comes with ids that are codes of another level, the child.

  Attributes:
    vectors_BSD: [B, S, D of the child], the codes as continuous vectors, with
      a gradient to the child (straight-through).
    codebooks: M arrays [K, C] that codes are embedded and predicted with,
      without gradient; None of a quantizer that has none.
  """

  vectors_BSD: Array
  codebooks: Codebooks | None


@flax.struct.dataclass
class CompressorOutput:
  """What a compressor makes of its ids.

  Attributes:
    entropy_logits_BSV: [B, S, V] float32, the entropy model's prediction of
      each id from those before it; where ids are codes, of their first digit.
    entropy_nats_BS: [B, S] float32, -log p of each id in that prediction, all
      digits together.
    entropy_bits_BS: [B, S] float32, entropy that cut segments, no gradient; see
      `predictive_entropy_bits`.
    gaussian_nats_BS: [B, S] float32, -log density of the embedding of each id,
      nats per dimension; None without a Gaussian head.
    segments: Where the ids were cut.
    is_valid_BP: [B, P] bool, slots that hold a segment.
    is_code_BU: [B, U] bool, the same for each code of a slot.
    pooled_BUD: [B, U, D] segments before quantization.
    quantized: Codes and their vectors.
  """

  entropy_logits_BSV: Array
  entropy_nats_BS: Array
  entropy_bits_BS: Array
  gaussian_nats_BS: Array | None
  segments: Segments
  is_valid_BP: Array
  is_code_BU: Array
  pooled_BUD: Array
  quantized: QuantizerOutput


class SegmentCompressor(nn.Module):
  """Entropy model, segmentation, encoder, pooling and quantizer of a level.

  The entropy path decides where segments begin, the compression path what they
  become; they share no parameter, and no gradient passes from one to the other.
  Above the first level the one reads codes, embedded through the codebooks of
  the level below, the other the vectors of that level.

  Attributes:
    config: Sizes of the level.
    num_ids: Ordinary ids; the specials come after them.
    implementation: Of the ops.
    dtype: Compute type.
    child: The level whose codes the ids are; None for bytes.

  Parameters:
    entropy_model, encoder, pooling, quantizer: See there.
    embed/embedding: [V, D], of bytes.
    project/kernel: From the width of the child's vectors to D, if they differ.

  Collections:
    vq: Of the quantizer.
    calibration: `threshold`, a `calibration.ThresholdState`; a forward pass
      with it mutable adds to the sums of the step.
  """

  config: LevelConfig
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype
  child: LevelConfig | None = None

  def setup(self):
    c = self.config
    check_rule(c.segmentation.rule, self.num_ids)
    common = dict(implementation=self.implementation, dtype=self.dtype)
    self.entropy_model = EntropyModel(
      c.entropy_model,
      c.entropy_heads,
      c.d_model,
      self.num_ids,
      **common,
      child=self.child,
    )
    if self.child is None:
      self.embed = layers.embed(
        self.num_ids + len(Special), c.d_model, self.dtype
      )
    elif self.child.d_model != c.d_model:
      self.project = nn.Dense(c.d_model, use_bias=False, dtype=self.dtype)
    self.encoder = Stack(c.encoder, c.d_model, **common)
    self.pooling = LearnedQueryAttention(
      c.pooling.num_heads, c.pooling.num_queries, **common
    )
    self.quantizer = QUANTIZERS[c.quantizer.kind](
      c.quantizer, c.d_model, **common
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
    """Compresses rows; see `Batch` for the arguments.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32.
      row_B: [B] int32.
      below: Of ids that are codes.

    Returns:
      Codes, and all that led to them.
    """
    codebooks = None if below is None else below.codebooks
    predicted, nats_BS, gaussian_nats_BS = self.predict(
      ids_BS, document_BS, codebooks
    )
    entropy_bits_BS, segments = self._segment(
      ids_BS, document_BS, *lax.stop_gradient((predicted, nats_BS))
    )
    num_slots = self.config.segmentation.num_slots(ids_BS.shape[1])
    states_BSD = self.encoder(self.inputs(ids_BS, below), document_BS)
    pooled_BUD = by_rows(self.pooling(states_BSD, segments.index_BS, num_slots))
    is_valid_BP = jnp.arange(num_slots) < segments.count_B[:, None]
    is_code_BU = jnp.repeat(is_valid_BP, self.pooling.num_queries, axis=1)
    return CompressorOutput(
      entropy_logits_BSV=predicted.logits,
      entropy_nats_BS=nats_BS,
      entropy_bits_BS=entropy_bits_BS,
      gaussian_nats_BS=gaussian_nats_BS,
      segments=segments,
      is_valid_BP=is_valid_BP,
      is_code_BU=is_code_BU,
      pooled_BUD=pooled_BUD,
      quantized=self.quantizer(pooled_BUD, is_code_BU, row_B),
    )

  def predict(
    self, ids_BS: Array, document_BS: Array, codebooks: Codebooks | None = None
  ) -> tuple[EntropyOutput, Array, Array | None]:
    """What the entropy model says.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32.
      codebooks: As in `Below`.

    Returns:
      Its predictions, and what the ids cost in them, as in `CompressorOutput`.
    """
    predicted = self.entropy_model(ids_BS, document_BS, codebooks)
    nats_BS = self.entropy_model.nats(ids_BS, predicted, codebooks)
    if predicted.mixture is None:
      return predicted, nats_BS, None
    gaussian_nats_BS = self.entropy_model.gaussian_nats(
      ids_BS, predicted, codebooks
    )
    return predicted, nats_BS, gaussian_nats_BS

  def inputs(self, ids_BS: Array, below: Below | None) -> Array:
    """What the encoder is fed, [B, S, D] of the compute type."""
    if self.child is None:
      return self.embed(ids_BS)
    if self.child.d_model == self.config.d_model:
      return below.vectors_BSD
    return self.project(below.vectors_BSD)

  def segmentation_policy(self) -> Policy:
    """How the level divides, with the threshold as it stands."""
    c = self.config.segmentation
    return Policy(
      self.threshold.value.threshold, c.rule, c.min_length, c.max_length
    )

  def _segment(
    self,
    ids_BS: Array,
    document_BS: Array,
    predicted: EntropyOutput,
    nats_BS: Array,
  ) -> tuple[Array, Segments]:
    c = self.config.segmentation
    entropy_bits_BS = predictive_entropy_bits(
      predicted, self.config.entropy_heads
    )
    known = segmentation.known_before(
      ids_BS,
      document_BS,
      entropy_bits_BS,
      nats_BS * sampling.BITS_PER_NAT,
    )
    segments = segmentation.segment(
      wishes(known, self.segmentation_policy()),
      document_BS,
      min_length=c.min_length,
      max_length=c.max_length,
      num_slots=c.num_slots(document_BS.shape[1]),
    )
    if self.is_mutable_collection('calibration') and not self.is_initializing():
      self.threshold.value = calibration.observe(self.threshold.value, segments)
    return entropy_bits_BS, segments
