"""Levels on top of each other, and a language model over the top codes."""

import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.config import ModelConfig
from abstractinator.model.compressor import Below, CompressorOutput
from abstractinator.model.expander import ExpanderOutput
from abstractinator.model.level import Abstractinator, LevelOutput
from abstractinator.model.quantizers import QuantizerOutput
from abstractinator.model.top_lm import (
  CodeSequence,
  CodeSequenceOutput,
  CodeSequenceTransformer,
)
from abstractinator.ops import digits, segmentation
from abstractinator.ops.code_rows import CodeRows
from abstractinator.ops.implementation import Implementations
from abstractinator.types import Array, Batch, Special


def read_only(module: nn.Module) -> Callable[..., Array]:
  """A bound module as a function that neither writes nor learns.

  So that vectors that a top LM predicts find their codes without leaving a
  trace in the statistics of the codebook, even where `vq` is mutable.

  Args:
    module: A bound module, such as the quantizer of a level.

  Returns:
    The module's `apply` with its variables in place: of its arguments, and of
    `method=` for other than the call. Its variables get no gradient.
  """
  unbound, variables = module.unbind()
  return functools.partial(unbound.apply, lax.stop_gradient(variables))


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


class Pyramid(nn.Module):
  """Stacked levels and an optional top LM: the forward pass.

  `decoding.pyramid.AbstractinatorPyramid` adds the way from codes to bytes.

  The ids of a level above the first are the codes of the one below. They reach
  its entropy model as codes, embedded through the codebooks below without a
  gradient; its compression path reads them as vectors, whose gradient goes on
  to the level below; and its expander predicts their digits.

  Attributes:
    config: Of all levels.
    num_ids: Ordinary ids of the first level; the specials come after them.
    implementation: Of the ops.
    dtype: Compute type.

  Parameters:
    level_0 and so on: Of each `Abstractinator`; those of a single level have no
      such name before theirs.
    top_lm: See `CodeSequenceTransformer`.
  """

  config: ModelConfig
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype

  def setup(self):
    c = self.config
    common = dict(implementation=self.implementation, dtype=self.dtype)
    children = (None, *c.levels)
    self.levels = [
      Abstractinator(
        level,
        self.num_ids if child is None else child.quantizer.num_codes,
        **common,
        child=child,
        name=f'level_{i}',
      )
      for i, (level, child) in enumerate(zip(c.levels, children, strict=False))
    ]
    if len(self.levels) == 1:
      nn.share_scope(self, self.levels[0])
    if c.top_lm is not None:
      top = c.levels[-1]
      self.top_lm = CodeSequenceTransformer(
        c.top_lm,
        top.d_model,
        top.quantizer.stage_sizes,
        top.quantizer.forbidden,
        **common,
      )

  def __call__(self, batch: Batch) -> PyramidOutput:
    """Compresses rows to the top and predicts every level back.

    Predictions are teacher-forced: each level is given its own true codes and
    the ids before, the top LM the codes before. See `Abstractinator` on the rng
    `byte_dropout`.
    """
    output = self._climb(batch, Abstractinator.__call__)
    if self.config.top_lm is None:
      return output
    output = output.replace(top_lm=self.top_lm(output.top_codes))
    if not self.config.top_lm.expand:
      return output
    return output.replace(top_lm_expanded=self._expand_predicted(output))

  def predict_bytes(self, batch: Batch) -> BytePredictions:
    """Runs the entropy model of the first level only."""
    predicted, nats_BS, gaussian_nats_BS = self.levels[0].compressor.predict(
      batch.ids_BS, batch.document_BS
    )
    return BytePredictions(batch, predicted.logits, nats_BS, gaussian_nats_BS)

  def predict_codes(self, batch: Batch) -> CodePredictions:
    """Runs the top LM only, on rows of codes of the top level.

    Args:
      batch: Of codes; the last one of a document has the number of codes added.

    Returns:
      Its predictions.
    """
    quantizer = self.levels[-1].compressor.quantizer
    num_codes = self.config.levels[-1].quantizer.num_codes
    sequence = read_sequence(batch, num_codes, quantizer.lookup)
    return CodePredictions(sequence, self.top_lm(sequence))

  def compress_all(self, batch: Batch) -> PyramidOutput:
    """Bytes to the codes of every level."""

    def compress(level, *args):
      return LevelOutput(compressed=level.compress(*args), expanded=None)

    return self._climb(batch, compress)

  def nearest_codes(
    self, vectors_BUD: Array, is_code_BU: Array, row_B: Array
  ) -> tuple[QuantizerOutput, Array | None]:
    """Codes of vectors that a continuous top LM predicts.

    Args:
      vectors_BUD: [B, U, D] float32.
      is_code_BU: [B, U] bool, where there are any.
      row_B: [B] int32, see `Batch`.

    Returns:
      What the top quantizer makes of them, and scores [B, U, K] float32 of the
      entries of stage 0, higher for what is nearer; None without a codebook.
    """
    quantizer = self.levels[-1].compressor.quantizer
    nearest = quantizer(vectors_BUD, is_code_BU, row_B)
    if quantizer.codebooks() is None:
      return nearest, None
    scored = quantizer.stage_logits(
      vectors_BUD, None, residual_conditioning=True, distance='squared'
    )
    return nearest, scored.logits[0]

  def _expand_predicted(self, output: PyramidOutput) -> ExpanderOutput:
    """Ids of the top level from predicted codes, with a gradient to those.

    A discrete top LM is taken at its word: its most likely code, with the
    gradient of the mean vector under its probabilities (straight-through). The
    vectors of a continuous one become their nearest codes, likewise.
    """
    compressed, batch = output.levels[-1].compressed, output.batches[-1]
    use = read_only(self.levels[-1].compressor.quantizer)
    predicted, is_code_BU = output.top_lm, compressed.is_code_BU
    if predicted.logits is None:
      vectors_BUD = use(
        predicted.vectors_BPD, is_code_BU, batch.row_B
      ).vectors_BPD
    else:
      digits_BUM = jnp.stack(
        [jnp.argmax(logits, axis=-1) for logits in predicted.logits], axis=-1
      )
      sizes = self.config.levels[-1].quantizer.stage_sizes
      best_BUD = use(digits.compose(digits_BUM, sizes), method='lookup')
      mean_BUD = use(
        tuple(jax.nn.softmax(logits) for logits in predicted.logits),
        method='expected',
      )
      vectors_BUD = mean_BUD + lax.stop_gradient(best_BUD - mean_BUD)
    child = self.levels[-2] if len(self.levels) > 1 else None
    return self.levels[-1].expander(
      batch.ids_BS,
      batch.document_BS,
      compressed.segments,
      vectors_BUD,
      codebooks=None
      if child is None
      else child.compressor.quantizer.codebooks(),
    )

  def _climb(
    self, batch: Batch, run: Callable[..., LevelOutput]
  ) -> PyramidOutput:
    """Runs a function of level, ids and what is below, bottom first."""
    # The last byte of a document says that it is; codes hand that on.
    is_last_BS = batch.ids_BS == self.num_ids + Special.EOS
    below, batches, outputs = None, [], []
    for level in self.levels:
      output = run(level, batch, below)
      batches.append(batch)
      outputs.append(output)
      codes = code_sequence(
        output.compressed, batch, is_last_BS, level.config.pooling.num_queries
      )
      pad = level.config.quantizer.num_codes + Special.PAD
      batch = Batch(
        ids_BS=jnp.where(codes.document_BP >= 0, codes.codes_BP, pad),
        document_BS=codes.document_BP,
        row_B=batch.row_B,
      )
      is_last_BS = codes.is_end_BP
      below = Below(codes.vectors_BPD, level.compressor.quantizer.codebooks())
    return PyramidOutput(tuple(batches), tuple(outputs), codes, top_lm=None)
