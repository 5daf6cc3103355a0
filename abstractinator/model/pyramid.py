"""Pyramid: levels on top of each other, and a language model over top codes."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.config import ModelConfig
from abstractinator.model.compressor import Below, CompressorOutput
from abstractinator.model.entropy_model import Prior
from abstractinator.model.expander import ExpanderOutput
from abstractinator.model.level import Abstractinator, LevelOutput
from abstractinator.model.quantizers import QuantizerOutput, read_only
from abstractinator.model.top_lm import (
  CodePrior,
  CodeSequence,
  CodeSequenceOutput,
  CodeSequenceTransformer,
)
from abstractinator.ops import (
  calibration,
  codebook,
  digits,
  segmentation,
  stage_logits,
)
from abstractinator.ops.code_rows import CodeRows
from abstractinator.ops.implementation import Implementations
from abstractinator.types import Array, Batch, PyTree, Special


@flax.struct.dataclass
class PyramidCodes:
  """Codes of all levels; tuples are bottom first.

  Attributes:
    batches: Ids of each level: the bytes, then the codes of the level below.
    levels: Segments and codes of each level.
    top_codes: Codes of the top level.
  """

  batches: tuple[Batch, ...]
  levels: tuple[CompressorOutput, ...]
  top_codes: CodeSequence


@flax.struct.dataclass
class PyramidOutput:
  """Outputs of all levels and of the top LM; tuples are bottom first.

  Attributes:
    batches: Ids of each level: the bytes, then the codes of the level below.
    levels: Output of each level.
    top_codes: Codes of the top level.
    top_lm: Predictions of the top codes; None without a top LM.
    top_lm_expanded: Predictions of the ids of the top level from the codes that
      the top LM predicts, in place of the true ones; None without
      `top_lm.expand`.
  """

  batches: tuple[Batch, ...]
  levels: tuple[LevelOutput, ...]
  top_codes: CodeSequence
  top_lm: CodeSequenceOutput | None
  top_lm_expanded: ExpanderOutput | None = None

  @property
  def codes(self) -> PyramidCodes:
    """Codes of all levels, as `Pyramid.compress_all` returns them."""
    compressed = tuple(level.compressed for level in self.levels)
    return PyramidCodes(self.batches, compressed, self.top_codes)


@flax.struct.dataclass
class BytePredictions:
  """Predictions of bytes by the entropy model of the first level.

  Attributes:
    batch: The bytes.
    logits_BSV: Logits of each id given the ids before it, [B, S, V] float32.
    nats_BS: -log p of each id, [B, S] float32.
    gaussian_nats_BS: -log density of the embedding of each id, nats per
      dimension, [B, S] float32; None without a Gaussian head.
  """

  batch: Batch
  logits_BSV: Array
  nats_BS: Array
  gaussian_nats_BS: Array | None


@flax.struct.dataclass
class CodePredictions:
  """Predictions of given top codes by the top LM.

  Attributes:
    top_codes: The codes.
    top_lm: Their predictions.
  """

  top_codes: CodeSequence
  top_lm: CodeSequenceOutput


@flax.struct.dataclass
class DecodedRows:
  """Bytes that top codes decode to.

  Attributes:
    ids_BPL: Ids of each segment of the first level, [B, P, L] int32.
    length_BP: Number of ids of each segment, [B, P] int32; 0 in empty slots.
    rows: Codes of the first level, from which the bytes were decoded.
  """

  ids_BPL: Array
  length_BP: Array
  rows: CodeRows


class Pyramid(nn.Module):
  """Stacked levels and an optional top LM: the forward pass.

  `decoding.pyramid.AbstractinatorPyramid` adds the way from codes to bytes.

  The ids of a level above the first are the codes of the level below. They
  reach its entropy model as codes, embedded through the codebooks below without
  a gradient; its encoder reads them as vectors, whose gradient passes to the
  level below; and its expander predicts their digits.

  Attributes:
    config: Sizes and settings of all levels and of the top LM.
    num_ids: Number of ordinary ids of the first level; the special ids follow
      them.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.

  Parameters:
    level_0 and so on: Parameters of each `Abstractinator`.
    top_lm: Parameters of a `CodeSequenceTransformer`.

  Collections:
    vq, calibration: States of the quantizers and of the thresholds; a forward
      pass with them mutable adds to the sums of the step, and
      `advance_collections` ends the step.
  """

  config: ModelConfig
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype

  def setup(self) -> None:
    c = self.config
    children = (None, *c.levels)
    self.levels = [
      Abstractinator(
        level,
        self.num_ids if child is None else child.quantizer.num_codes,
        self.implementation,
        self.dtype,
        child=child,
        name=f'level_{i}',
      )
      for i, (level, child) in enumerate(zip(c.levels, children, strict=False))
    ]
    if len(self.levels) == 1:
      _share_random_keys(self, self.levels[0])
    if c.top_lm is not None:
      top = c.levels[-1]
      self.top_lm = CodeSequenceTransformer(
        c.top_lm,
        top.d_model,
        top.quantizer.stage_sizes,
        top.quantizer.forbidden,
        self.implementation,
        self.dtype,
        moves_codes=top.quantizer.kind == 'dictionary',
      )

  def __call__(self, batch: Batch) -> PyramidOutput:
    """Compresses rows to the top and predicts every level back.

    Predictions are teacher-forced: each level is given its true codes and the
    ids before, the top LM the codes before. See `Abstractinator` for the rng
    `byte_dropout`.
    """
    codes = self.compress_all(batch)
    return self.predict(codes, self.predict_top(codes))

  def predict(
    self, codes: PyramidCodes, top_lm: CodeSequenceOutput | None
  ) -> PyramidOutput:
    """Predicts every level back from codes, teacher-forced.

    Args:
      codes: Codes of all levels.
      top_lm: Predictions of the top codes; None without a top LM.

    Returns:
      All outputs, as a call returns them.
    """
    levels = tuple(
      LevelOutput(compressed, self.expand(codes, top_lm, number))
      for number, compressed in enumerate(codes.levels)
    )
    expanded = None
    if top_lm is not None and self.top_lm.config.expand:
      vectors_BUD = self._predicted_vectors(codes, top_lm)
      expanded = self.expand(codes, top_lm, len(levels) - 1, vectors_BUD)
    return PyramidOutput(
      codes.batches, levels, codes.top_codes, top_lm, expanded
    )

  def predict_top(self, codes: PyramidCodes) -> CodeSequenceOutput | None:
    """Predicts the top codes; None without a top LM."""
    if self.config.top_lm is None:
      return None
    return self.top_lm(codes.top_codes)

  def expand(
    self,
    codes: PyramidCodes,
    top_lm: CodeSequenceOutput | None,
    number: int,
    vectors_BUD: Array | None = None,
    codes_BU: Array | None = None,
  ) -> ExpanderOutput:
    """Predicts the ids of one level from codes, teacher-forced.

    Args:
      codes: Codes of all levels.
      top_lm: Predictions of the top codes; None without a top LM.
      number: Number of the level, counted from 0 at the bottom.
      vectors_BUD: Vectors in place of those of the codes, [B, U, D]; None for
        the codes.
      codes_BU: Codes in place of those of the level, [B, U] int32; None for
        these.

    Returns:
      Predictions of the ids.
    """
    is_top = number == len(self.levels) - 1
    codebooks = None
    if number > 0:
      codebooks = self.levels[number - 1].compressor.quantizer.codebooks()
    return self.levels[number].expand(
      codes.batches[number],
      codes.levels[number],
      codebooks,
      vectors_BUD=vectors_BUD,
      codes_BU=codes_BU,
      states_BUY=top_lm.states_BPY if is_top and top_lm is not None else None,
    )

  def predict_bytes(self, batch: Batch) -> BytePredictions:
    """Runs the entropy model of the first level only, on rows of bytes."""
    predicted, nats_BS, gaussian_nats_BS = self.levels[0].compressor.predict(
      batch.ids_BS, batch.document_BS
    )
    return BytePredictions(batch, predicted.logits, nats_BS, gaussian_nats_BS)

  def predict_codes(self, batch: Batch) -> CodePredictions:
    """Runs the top LM only, on rows of codes of the top level.

    Args:
      batch: Codes, with the number of codes added to the last code of each
        document.

    Returns:
      The predictions.
    """
    num_codes = self.config.levels[-1].quantizer.num_codes
    is_code_BP = batch.document_BS >= 0
    codes_BP = jnp.where(is_code_BP, batch.ids_BS % num_codes, 0)
    sequence = CodeSequence(
      codes_BP=codes_BP,
      vectors_BPD=self.levels[-1].compressor.quantizer.lookup(codes_BP),
      document_BP=batch.document_BS,
      is_end_BP=is_code_BP & (batch.ids_BS >= num_codes),
    )
    return CodePredictions(sequence, self.top_lm(sequence))

  def compress_all(self, batch: Batch) -> PyramidCodes:
    """Compresses rows of bytes to the codes of every level, bottom first."""
    # The last byte of a document says that it is; codes hand that on.
    is_last_BS = batch.ids_BS == self.num_ids + Special.EOS
    below, batches, outputs = None, [], []
    for level in self.levels:
      compressed = level.compress(batch, below)
      batches.append(batch)
      outputs.append(compressed)
      codes = code_sequence(
        compressed, batch, is_last_BS, level.config.pooling.num_queries
      )
      pad = level.config.quantizer.num_codes + Special.PAD
      batch = Batch(
        ids_BS=jnp.where(codes.document_BP >= 0, codes.codes_BP, pad),
        document_BS=codes.document_BP,
        row_B=batch.row_B,
      )
      is_last_BS = codes.is_end_BP
      below = Below(codes.vectors_BPD, level.compressor.quantizer.codebooks())
    prior = segmentation.at_starts(
      compressed.prior, compressed.segments, compressed.is_valid_BP.shape[1]
    )
    codes = dataclasses.replace(codes, prior=self.code_prior(prior))
    return PyramidCodes(tuple(batches), tuple(outputs), codes)

  def code_prior(self, prior: Prior) -> CodePrior | None:
    """Turns predictions of the first ids of segments into those of codes.

    Args:
      prior: Predictions by the entropy model, [...].

    Returns:
      What the top LM builds on, [...]; None without `top_lm.base`.
    """
    top_lm = self.config.top_lm
    if top_lm is None or top_lm.base == 'none':
      return None
    quantizer = self.levels[-1].compressor.quantizer
    return CodePrior(prior.states, quantizer.first_id_logits(prior.logits))

  def nearest_codes(
    self, vectors_BUD: Array, is_code_BU: Array, row_B: Array
  ) -> tuple[QuantizerOutput, Array | None]:
    """Quantizes vectors that a continuous top LM predicts.

    Args:
      vectors_BUD: Predicted vectors, [B, U, D] float32.
      is_code_BU: True where there is a code, [B, U] bool.
      row_B: Identity of each row, [B] int32; see `Batch`.

    Returns:
      Codes of the top quantizer, and scores of the entries of stage 0, higher
      for nearer ones, [B, U, K] float32; None without a codebook.
    """
    quantizer = self.levels[-1].compressor.quantizer
    nearest = quantizer(vectors_BUD, is_code_BU, row_B)
    codebooks = quantizer.codebooks()
    if codebooks is None:
      return nearest, None
    scored = stage_logits.stage_logits(
      quantizer.to_code_space(vectors_BUD),
      codebooks[:1],
      None,
      residual_conditioning=False,
      distance='squared',
    )
    return nearest, scored.logits[0]

  def _predicted_vectors(
    self, codes: PyramidCodes, predicted: CodeSequenceOutput
  ) -> Array:
    """Returns vectors of predicted top codes, with a gradient to them.

    The codes are the most likely ones of a discrete top LM, with the gradient
    of the mean vector under its probabilities (straight-through), or the
    nearest ones of the vectors of a continuous top LM, likewise.
    """
    compressed, batch = codes.levels[-1], codes.batches[-1]
    use = read_only(self.levels[-1].compressor.quantizer)
    if predicted.logits is None:
      return use(
        predicted.vectors_BPD, compressed.is_code_BU, batch.row_B
      ).vectors_BPD
    digits_BUM = jnp.stack(
      [jnp.argmax(logits, axis=-1) for logits in predicted.logits], axis=-1
    )
    sizes = self.config.levels[-1].quantizer.stage_sizes
    best_BUD = use(digits.compose(digits_BUM, sizes), method='lookup')
    mean_BUD = use(
      tuple(jax.nn.softmax(logits) for logits in predicted.logits),
      method='expected',
    )
    return mean_BUD + lax.stop_gradient(best_BUD - mean_BUD)


def _share_random_keys(pyramid: Pyramid, level: Abstractinator) -> None:
  """Makes a level draw random numbers as if it had no name in the pyramid.

  Flax derives the random keys of a module from the names above it. With this, a
  pyramid of one level starts from the same numbers as that level by itself.
  """
  if pyramid.scope is not None and level.scope is not None:
    level.scope.rngs = pyramid.scope.rngs


def code_sequence(
  compressed: CompressorOutput,
  batch: Batch,
  is_last_BS: Array,
  num_queries: int,
) -> CodeSequence:
  """Returns the codes of a level with their documents and document ends.

  Args:
    compressed: Output of the compressor of the level.
    batch: Ids of the level.
    is_last_BS: True for ids that are the last of their documents, [B, S] bool.
    num_queries: Number of codes of a segment, Q.
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
    segments_BPD=compressed.pooled_BUD,
  )


_ADVANCE: dict[type, Callable[[PyTree], PyTree]] = {
  codebook.CodebookState: codebook.advance,
  calibration.ThresholdState: calibration.advance,
}


def advance_collections(collections: PyTree) -> PyTree:
  """Ends an optimizer step for every state in `vq` and `calibration`.

  Args:
    collections: Mutable collections after the forward passes of the step.

  Returns:
    The collections of the next step.
  """

  def advance(path: tuple[jax.tree_util.DictKey, ...], state: PyTree) -> PyTree:
    if path[-1].key == 'table':  # That of a dictionary is counted once.
      return state
    return _ADVANCE[type(state)](state)

  return jax.tree_util.tree_map_with_path(
    advance, collections, is_leaf=lambda node: type(node) in _ADVANCE
  )
