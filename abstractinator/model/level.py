"""One level: a compressor from ids to codes, and the expander back."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.config import LevelConfig
from abstractinator.model.compressor import (
  Below,
  CompressorOutput,
  SegmentCompressor,
)
from abstractinator.model.expander import DecoderOnlyExpanderRVQ, ExpanderOutput
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops import dictionary
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.sampling import hidden_ids
from abstractinator.types import Array, Batch


@flax.struct.dataclass
class LevelOutput:
  """Outputs of the compressor and of the expander of one level.

  Attributes:
    compressed: Segments and codes of the ids.
    expanded: Teacher-forced predictions of the ids from the codes.
  """

  compressed: CompressorOutput
  expanded: ExpanderOutput


class Abstractinator(nn.Module):
  """A level: a compressor, and the expander that undoes it.

  The ids of a level are bytes, or the codes of the level below: then every call
  is given `Below`, and the expander predicts the digits of those codes, in the
  space of their codebooks if there are any. Codes have no EOS: a document ends
  with its last code.

  Attributes:
    config: Sizes and settings of the level.
    num_ids: Number of ordinary ids; the special ids follow them.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
    child: Config of the level below, whose codes the ids are; None for bytes.

  Parameters:
    compressor: Parameters of a `SegmentCompressor`.
    expander: Parameters of a `DecoderOnlyExpanderRVQ`.
  """

  config: LevelConfig
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype
  child: LevelConfig | None = None

  def setup(self) -> None:
    self.compressor = SegmentCompressor(
      self.config,
      self.num_ids,
      self.implementation,
      self.dtype,
      child=self.child,
    )
    config, width = self.config, None
    sizes: tuple[int, ...] = (self.num_ids,)
    if self.child is not None:
      sizes = self.child.quantizer.stage_sizes
      width = self.child.codebook_width
    if width is not None:
      expander = dataclasses.replace(config.expander, code_dim=width)
      config = dataclasses.replace(config, expander=expander)
    self.expander = DecoderOnlyExpanderRVQ(
      config,
      sizes,
      self.implementation,
      self.dtype,
      has_tables=width is None,
      has_eos=self.child is None,
    )

  def __call__(self, batch: Batch, below: Below | None = None) -> LevelOutput:
    """Compresses rows and predicts them back, teacher-forced.

    Args:
      batch: Rows of ids.
      below: Vectors and codebooks of the level below, if ids are its codes.

    Returns:
      Codes and predictions.
    """
    compressed = self.compress(batch, below)
    codebooks = None if below is None else below.codebooks
    return LevelOutput(compressed, self.expand(batch, compressed, codebooks))

  def compress(
    self, batch: Batch, below: Below | None = None
  ) -> CompressorOutput:
    """Compresses rows; the arguments are those of a call."""
    return self.compressor(batch.ids_BS, batch.document_BS, batch.row_B, below)

  def expand(
    self,
    batch: Batch,
    compressed: CompressorOutput,
    codebooks: Codebooks | None = None,
    *,
    vectors_BUD: Array | None = None,
    codes_BU: Array | None = None,
    states_BUY: Array | None = None,
  ) -> ExpanderOutput:
    """Predicts rows from codes, teacher-forced.

    With an rng `byte_dropout`, as in training, `ExpanderConfig.byte_dropout` of
    the ids are hidden from the expander.

    Args:
      batch: Rows of ids.
      compressed: Their segments and codes.
      codebooks: Codebooks of the level below, if ids are its codes.
      vectors_BUD: Vectors in place of those of the codes, [B, U, D]; None for
        the codes.
      codes_BU: Codes in place of those of the segments, [B, U] int32; None for
        these. They matter where codes alone tell ids: see `Quantizer.spell`.
      states_BUY: States from which the top LM predicts the codes, [B, U, Y];
        see `DecoderOnlyExpanderRVQ.memory`.

    Returns:
      Predictions of the ids.
    """
    hidden_BS, rate = None, self.config.expander.byte_dropout
    if rate > 0 and self.has_rng('byte_dropout'):
      hidden_BS = hidden_ids(
        self.make_rng('byte_dropout'),
        batch.row_B,
        batch.ids_BS.shape[1],
        rate,
      )
    if vectors_BUD is None:
      vectors_BUD = compressed.quantized.vectors_BPD
    if codes_BU is None:
      codes_BU = compressed.quantized.codes_BP
    segments = compressed.segments
    spelled_BUL = self.compressor.quantizer.spell(codes_BU)
    return self.expander(
      batch.ids_BS,
      batch.document_BS,
      segments,
      self.expander.memory(vectors_BUD, states_BUY),
      hidden_BS,
      codebooks,
      compressed.prior if self.expander.has_prior else None,
      dictionary.spelling(spelled_BUL, segments.index_BS, segments.offset_BS),
    )
