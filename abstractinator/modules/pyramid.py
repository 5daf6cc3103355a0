"""Levels on top of each other, and a language model over the top codes."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.config import ModelConfig
from abstractinator.modules.abstractinator import Abstractinator, LevelOutput
from abstractinator.modules.code_sequence_transformer import (
  CodeSequenceTransformer,
)
from abstractinator.modules.expander_output import ExpanderOutput
from abstractinator.modules.generation import pyramid as generation
from abstractinator.modules.generation.request import Request
from abstractinator.modules.pyramid_output import (
  BytePredictions,
  CodePredictions,
  DecodedRows,
  PyramidOutput,
  code_sequence,
  read_sequence,
)
from abstractinator.modules.quantizer import QuantizerOutput
from abstractinator.modules.read_only import read_only
from abstractinator.modules.segment_compressor import Below
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops import code_rows, digits
from abstractinator.ops.code_rows import CodeRows
from abstractinator.ops.implementation import Implementations
from abstractinator.types import Array, Batch, Special


class AbstractinatorPyramid(nn.Module):
  """Any number of levels, and a top LM if the config has one.

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

  def decode_all(
    self,
    codes_BU: Array,
    is_valid_BP: Array,
    lowest_BP: Array,
    sequence_length: int,
    number: int | None = None,
  ) -> DecodedRows:
    """Codes to bytes, greedily, level by level.

    Each level decodes as `Abstractinator.decode` says; the ids of a level are
    the codes of the one below.

    Args:
      codes_BU: [B, U] int32, of the level.
      is_valid_BP: [B, P] bool, slots with a segment, the first ones of a row.
      lowest_BP: [B, P] int32, first slot of the document of each slot.
      sequence_length: S, the most ids a row of the first level can have.
      number: Of the level, counted from 0; the top level by default.

    Returns:
      The bytes of the segments of the first level.
    """
    rows = code_rows.top_rows(codes_BU, is_valid_BP, lowest_BP)
    sizes = self.config.sequence_lengths(sequence_length)
    levels = self.levels if number is None else self.levels[: number + 1]
    for child, level, size in reversed(
      list(zip(levels, levels[1:], sizes[1:], strict=False))
    ):
      codebooks = child.compressor.quantizer.codebooks()
      ids_BPL, length_BP = _decode(level, rows, size, codebooks)
      num_queries = child.config.pooling.num_queries
      rows = code_rows.unfold(
        rows,
        ids_BPL,
        length_BP,
        num_slots=size // num_queries,
        num_queries=num_queries,
      )
    return DecodedRows(*_decode(self.levels[0], rows, sizes[0]), rows)

  def generate_bytes(
    self,
    ids_BS: Array,
    count_B: Array,
    request: Request,
    *,
    max_new_bytes: int,
    num_slots: int = 16,
  ) -> tuple[Array, Array]:
    """Continues rows: prompts to codes, more codes, and those to bytes.

    `abstractinator.generation` does it bit by bit, as bytes are wanted.

    Args:
      ids_BS: [B, S] int32, bytes; each row is the beginning of a document.
      count_B: [B] int32, how many of a row there are, 0 to S.
      request: What is asked for; limits above `max_new_bytes` are no other.
      max_new_bytes: N.
      num_slots: Segments of the top level that are made at a time.

    Returns:
      [B, N] int32, new bytes, and [B] int32, how many there are.
    """
    return generation.generate_bytes(
      self,
      ids_BS,
      count_B,
      request,
      max_new_bytes=max_new_bytes,
      num_slots=num_slots,
    )

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


def _decode(
  level: Abstractinator,
  rows: CodeRows,
  sequence_length: int,
  codebooks: Codebooks | None = None,
) -> tuple[Array, Array]:
  return level.decode(
    rows.codes_BU, rows.is_valid_BP, rows.lowest_BP, sequence_length, codebooks
  )
