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

import jax.numpy as jnp

from abstractinator.model.level import LevelOutput
from abstractinator.model.pyramid import PyramidOutput
from abstractinator.objective import losses
from abstractinator.objective.losses import prefixes
from abstractinator.ops import segmentation
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import NUM_BYTES, Array, Batch

RowSums = dict[str, Array]

# What the top codes cost under a discrete top LM: names of `pyramid_bits`.
TOP_LM_SUMS = ('top_lm_code_bits', 'top_lm_end_bits')


def expansion_sums(num_levels: int) -> list[str]:
  """What a text costs given its top codes: names of `pyramid_bits`."""
  return [
    f'{prefix}{part}_bits'
    for prefix in prefixes(num_levels)
    for part in ('expander', 'end')
  ]


def pyramid_bits(
  output: PyramidOutput, is_counted_BS: Array
) -> tuple[RowSums, Array]:
  """Bits of the ids that count, and how many bytes there are.

  Args:
    output: Of the pyramid, teacher-forced.
    is_counted_BS: [B, S] bool, of the first level; in each document all ids
      from some one on.

  Returns:
    [B] float32 each: `num_bytes`, `num_right_bytes`; bits, after the prefix of
    each level, `entropy_model_bits`, `expander_bits`, `end_bits`; with a
    discrete top LM `top_lm_code_bits` and `top_lm_end_bits`. And [B, U] bool,
    the top codes that are paid for.
  """
  sums = _byte_sums(output, is_counted_BS)
  for prefix, level, batch in zip(
    prefixes(len(output.levels)), output.levels, output.batches, strict=True
  ):
    is_counted_BS = is_counted_BS & (batch.document_BS >= 0)
    bits = _level_bits(level, is_counted_BS)
    sums |= {prefix + name: value for name, value in bits.items()}
    is_counted_BS = _codes_that_count(level, is_counted_BS)
  top_lm, codes = output.top_lm, output.top_codes
  if top_lm is not None and top_lm.logits is not None:
    code_BU = losses.code_nats(top_lm, codes.codes_BP)
    end_BU = losses.end_nats(top_lm, codes.is_end_BP)
    sums['top_lm_code_bits'] = _bits(code_BU, is_counted_BS)
    sums['top_lm_end_bits'] = _bits(end_BU, is_counted_BS)
  return sums, is_counted_BS


def entropy_model_bits(
  nats_BS: Array, logits_BSV: Array, batch: Batch, is_counted_BS: Array
) -> RowSums:
  """The same of an entropy model alone: its bits and the bytes it gets right.

  Args:
    nats_BS: [B, S] float32, -log p of each id.
    logits_BSV: [B, S, V] float32.
    batch: The ids.
    is_counted_BS: [B, S] bool.

  Returns:
    [B] float32 each: `num_bytes`, `num_right_bytes`, `entropy_model_bits`.
  """
  is_counted_BS = is_counted_BS & (batch.document_BS >= 0)
  is_byte_BS = is_counted_BS & (batch.ids_BS < NUM_BYTES)
  is_right_BS = jnp.argmax(logits_BSV, axis=-1) == batch.ids_BS
  return {
    'num_bytes': _count(is_byte_BS),
    'num_right_bytes': _count(is_byte_BS & is_right_BS),
    'entropy_model_bits': _bits(nats_BS, is_counted_BS),
  }


def _byte_sums(output: PyramidOutput, is_counted_BS: Array) -> RowSums:
  batch = output.batches[0]
  is_byte_BS = is_counted_BS & (batch.document_BS >= 0)
  is_byte_BS &= batch.ids_BS < NUM_BYTES
  is_right_BS = output.levels[0].expanded.best_BS == batch.ids_BS
  return {
    'num_bytes': _count(is_byte_BS),
    'num_right_bytes': _count(is_byte_BS & is_right_BS),
  }


def _level_bits(level: LevelOutput, is_counted_BS: Array) -> RowSums:
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
  end_BS = losses.sigmoid_cross_entropy(
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
