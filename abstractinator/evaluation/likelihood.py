"""What ids cost under a pyramid: sums of each row, over the ids that count.

The ids before the first that counts are known: they condition what follows and
cost nothing. So are the codes of segments that lie before it, which follow from
them. A segment that it divides has a code that is not known: its code is paid
for, its known ids and their ends are not. What is paid is thereby what a
message to one who knows the context would take, and the sum over the windows of
a document an upper bound of what the document costs.

Where slots run short, the division of known ids depends on later ones; then the
ends of all ids of the row are paid for.
"""

from typing import TypeVar

import jax.numpy as jnp
from optax.losses import sigmoid_binary_cross_entropy

from abstractinator.model.level import LevelOutput
from abstractinator.model.pyramid import PyramidOutput
from abstractinator.objective import losses
from abstractinator.objective.by_level import ByLevel
from abstractinator.ops import segmentation
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Batch

T = TypeVar('T')
RowSums = ByLevel[Array]


def expansion_bits(sums: ByLevel[T]) -> list[T]:
  """Returns what a text costs given its top codes, part by part.

  Args:
    sums: Sums from `pyramid_bits`, of rows or of all of them.

  Returns:
    The bits of the ids and of the ends of segments, level by level.
  """
  return [
    of_level[name]
    for of_level in sums.levels
    for name in ('expander_bits', 'end_bits')
  ]


def top_lm_bits(sums: ByLevel[T]) -> list[T]:
  """Returns what the top codes cost under a discrete top LM, part by part.

  Args:
    sums: Sums from `pyramid_bits`, of rows or of all of them.

  Returns:
    The bits of the codes and of the ends of documents; none without a discrete
    top LM.
  """
  names = ('top_lm_code_bits', 'top_lm_end_bits')
  return [sums.whole[name] for name in names if name in sums.whole]


def pyramid_bits(
  output: PyramidOutput, is_counted_BS: Array
) -> tuple[RowSums, Array]:
  """Bits of the ids that count, and how many bytes there are.

  Args:
    output: Of the pyramid, teacher-forced.
    is_counted_BS: [B, S] bool, of the first level; in each document all ids
      from some one on.

  Returns:
    [B] float32 each: of each level `entropy_model_bits`, `expander_bits` and
    `end_bits`; of the whole `num_bytes`, `num_right_bytes` and, with a discrete
    top LM, `top_lm_code_bits` and `top_lm_end_bits`. And [B, U] bool, the top
    codes that are paid for.
  """
  whole = _byte_sums(
    output.batches[0], output.levels[0].expanded.best_BS, is_counted_BS
  )
  levels = []
  for level, batch in zip(output.levels, output.batches, strict=True):
    is_counted_BS = is_counted_BS & (batch.document_BS >= 0)
    levels.append(_level_bits(level, is_counted_BS))
    is_counted_BS = _codes_that_count(level, is_counted_BS)
  top_lm, codes = output.top_lm, output.top_codes
  if top_lm is not None and top_lm.logits is not None:
    code_BU = losses.code_nats(top_lm, codes.codes_BP)
    end_BU = losses.end_nats(top_lm, codes.is_end_BP)
    whole['top_lm_code_bits'] = _bits(code_BU, is_counted_BS)
    whole['top_lm_end_bits'] = _bits(end_BU, is_counted_BS)
  return ByLevel(tuple(levels), whole), is_counted_BS


def entropy_model_bits(
  nats_BS: Array, logits_BSV: Array, batch: Batch, is_counted_BS: Array
) -> RowSums:
  """Sums the bits of an entropy model alone, and the bytes it gets right.

  Args:
    nats_BS: [B, S] float32, -log p of each id.
    logits_BSV: [B, S, V] float32.
    batch: The ids.
    is_counted_BS: [B, S] bool.

  Returns:
    [B] float32 each: of the level `entropy_model_bits`, of the whole
    `num_bytes` and `num_right_bytes`.
  """
  whole = _byte_sums(batch, jnp.argmax(logits_BSV, axis=-1), is_counted_BS)
  is_counted_BS = is_counted_BS & (batch.document_BS >= 0)
  return ByLevel(
    ({'entropy_model_bits': _bits(nats_BS, is_counted_BS)},), whole
  )


def _byte_sums(
  batch: Batch, best_BS: Array, is_counted_BS: Array
) -> dict[str, Array]:
  is_byte_BS = is_counted_BS & losses.is_byte(batch)
  return {
    'num_bytes': _count(is_byte_BS),
    'num_right_bytes': _count(is_byte_BS & (best_BS == batch.ids_BS)),
  }


def _level_bits(level: LevelOutput, is_counted_BS: Array) -> dict[str, Array]:
  compressed, expanded = level.compressed, level.expanded
  found = {
    'entropy_model_bits': _bits(compressed.entropy_nats_BS, is_counted_BS),
    'expander_bits': _bits(expanded.nats_BS, is_counted_BS),
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
  return found | {'end_bits': _bits(end_BS, is_paid_BS)}


def _codes_that_count(level: LevelOutput, is_counted_BS: Array) -> Array:
  """Codes of segments whose last id counts, [B, U] bool."""
  compressed = level.compressed
  is_counted_BP = segmentation.per_slot_end(
    is_counted_BS, compressed.segments, compressed.is_valid_BP.shape[1]
  )
  num_queries = (
    compressed.is_code_BU.shape[1] // compressed.is_valid_BP.shape[1]
  )
  return jnp.repeat(is_counted_BP, num_queries, axis=1) & compressed.is_code_BU


def _bits(nats_BS: Array, mask_BS: Array) -> Array:
  return BITS_PER_NAT * jnp.sum(jnp.where(mask_BS, nats_BS, 0.0), axis=1)


def _count(mask_BS: Array) -> Array:
  return jnp.sum(mask_BS, axis=1, dtype=jnp.float32)
