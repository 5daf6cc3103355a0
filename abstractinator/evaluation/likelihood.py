"""Cost of ids under a pyramid: bits of each row, over the ids that are scored.

The ids of a document before the first scored one are context: they condition
the ids after them and cost nothing. Nor do the codes of segments that lie in
the context cost anything, since they follow from it. A segment that begins in
the context and ends after it has an unknown code: this code costs bits, but not
the context ids of the segment and their ends. The sum is the length of a
message to a receiver who knows the context. Summed over the windows of a
document it is an upper bound on the cost of the document.

Where slots run short, the segments of the context depend on the ids after it;
then the ends of all ids of the row cost bits.
"""

from typing import TypeVar

import jax.numpy as jnp
from optax.losses import sigmoid_binary_cross_entropy

from abstractinator.model.level import LevelOutput
from abstractinator.model.pyramid import BytePredictions, PyramidOutput
from abstractinator.objective import losses
from abstractinator.objective.by_level import ByLevel
from abstractinator.ops import segmentation
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Batch

T = TypeVar('T')
RowSums = ByLevel[Array]


def expansion_bits(sums: ByLevel[T]) -> list[T]:
  """Returns the cost of a text given its top codes, part by part.

  The parts are the bits of the ids and of the ends of segments, level by level.
  `sums` are those of `pyramid_bits`, of each row or over all rows.
  """
  return [
    of_level[name]
    for of_level in sums.levels
    for name in ('expander_bits', 'end_bits')
  ]


def top_lm_bits(sums: ByLevel[T]) -> list[T]:
  """Returns the cost of the top codes under a discrete top LM, part by part.

  The parts are the bits of the codes and of the ends of documents; there are
  none without a discrete top LM. See `expansion_bits` for `sums`.
  """
  names = ('top_lm_code_bits', 'top_lm_end_bits')
  return [sums.whole[name] for name in names if name in sums.whole]


def pyramid_bits(
  output: PyramidOutput, is_counted_BS: Array
) -> tuple[RowSums, Array]:
  """Sums the bits of the scored ids of each row, and counts their bytes.

  Args:
    output: Output of the pyramid, teacher-forced.
    is_counted_BS: True for the scored ids of the first level, [B, S] bool; in
      each document all ids from the first scored one on.

  Returns:
    The sums, [B] float32 each: for each level `entropy_model_bits`,
    `expander_bits` and `end_bits`; for the whole `num_bytes`,
    `num_right_bytes`, whose most likely id is the true one, and, with a
    discrete top LM, `top_lm_code_bits` and `top_lm_end_bits`. And the mask of
    the top codes that cost bits, [B, U] bool.
  """
  best_BS = output.levels[0].expanded.best_BS
  whole = _byte_sums(output.batches[0], best_BS, is_counted_BS)
  levels = []
  for level, batch in zip(output.levels, output.batches, strict=True):
    is_counted_BS = is_counted_BS & (batch.document_BS >= 0)
    levels.append(_level_bits(level, is_counted_BS))
    is_counted_BS = _counted_codes(level, is_counted_BS)
  top_lm, codes = output.top_lm, output.top_codes
  if top_lm is not None and top_lm.logits is not None:
    code_BU = losses.code_nats(top_lm, codes.codes_BP)
    end_BU = losses.end_nats(top_lm, codes.is_end_BP)
    whole['top_lm_code_bits'] = row_bits(code_BU, is_counted_BS)
    whole['top_lm_end_bits'] = row_bits(end_BU, is_counted_BS)
  return ByLevel(tuple(levels), whole), is_counted_BS


def entropy_model_bits(
  predictions: BytePredictions, is_counted_BS: Array
) -> RowSums:
  """Sums the bits of the scored ids of each row under the entropy model alone.

  Args:
    predictions: Predictions of bytes by the entropy model of the first level.
    is_counted_BS: True for the scored ids, [B, S] bool.

  Returns:
    The sums, [B] float32 each: for the level `entropy_model_bits`; for the
    whole `num_bytes` and `num_right_bytes`, whose most likely id is the true
    one.
  """
  batch = predictions.batch
  best_BS = jnp.argmax(predictions.logits_BSV, axis=-1)
  whole = _byte_sums(batch, best_BS, is_counted_BS)
  is_counted_BS = is_counted_BS & (batch.document_BS >= 0)
  bits_B = row_bits(predictions.nats_BS, is_counted_BS)
  return ByLevel(({'entropy_model_bits': bits_B},), whole)


def row_bits(nats_BS: Array, mask_BS: Array) -> Array:
  """Returns the bits of the masked ids of each row, [B], from nats [B, S]."""
  return BITS_PER_NAT * jnp.sum(nats_BS, axis=1, where=mask_BS)


def _byte_sums(
  batch: Batch, best_BS: Array, is_counted_BS: Array
) -> dict[str, Array]:
  """Counts the scored bytes of each row, and those predicted right."""
  is_byte_BS = is_counted_BS & losses.is_byte(batch)
  is_right_BS = is_byte_BS & (best_BS == batch.ids_BS)
  return {
    'num_bytes': jnp.sum(is_byte_BS, axis=1, dtype=jnp.float32),
    'num_right_bytes': jnp.sum(is_right_BS, axis=1, dtype=jnp.float32),
  }


def _level_bits(level: LevelOutput, is_counted_BS: Array) -> dict[str, Array]:
  """Sums the bits of the scored ids of a level and of the ends of segments."""
  compressed, expanded = level.compressed, level.expanded
  found = {
    'entropy_model_bits': row_bits(compressed.entropy_nats_BS, is_counted_BS),
    'expander_bits': row_bits(expanded.nats_BS, is_counted_BS),
  }
  if expanded.end_logits_BS is None:
    return found | {'end_bits': jnp.zeros(is_counted_BS.shape[0])}
  segments = compressed.segments
  is_short_B = jnp.any(segments.is_capacity_bound_BS, axis=1)
  is_paid_BS = is_counted_BS | is_short_B[:, None]
  is_paid_BS &= (segments.index_BS >= 0) & ~expanded.end_is_certain_BS
  end_BS = sigmoid_binary_cross_entropy(
    expanded.end_logits_BS, segments.is_end_BS
  )
  return found | {'end_bits': row_bits(end_BS, is_paid_BS)}


def _counted_codes(level: LevelOutput, is_counted_BS: Array) -> Array:
  """Returns the codes of segments whose last id is scored, [B, U] bool."""
  compressed = level.compressed
  num_slots = compressed.is_valid_BP.shape[1]
  is_counted_BP = segmentation.per_slot_end(
    is_counted_BS, compressed.segments, num_slots
  )
  queries = compressed.is_code_BU.shape[1] // num_slots
  return jnp.repeat(is_counted_BP, queries, axis=1) & compressed.is_code_BU
