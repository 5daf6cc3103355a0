"""The terms of all levels of a pyramid, and of its top LM."""

import jax
import jax.numpy as jnp
from jax import lax
from optax.losses import (
  softmax_cross_entropy_with_integer_labels as cross_entropy,
)

from abstractinator.config import LossConfig
from abstractinator.model.level import LevelOutput
from abstractinator.model.pyramid import PyramidOutput
from abstractinator.model.top_lm import CodeSequence, CodeSequenceOutput
from abstractinator.ops import digits as digits_lib
from abstractinator.types import Array, Batch

# Of a level, in the order of `terms`.
LEVEL_TERMS = (
  'entropy_model',
  'gaussian',
  'expander',
  'end',
  'commitment',
  'codebook',
)
_AVERAGED = ('expander', 'end')


def num_ids(batch: Batch) -> Array:
  """Real ids of a batch, [] float32."""
  return jnp.sum(batch.document_BS >= 0, dtype=jnp.float32)


def level_terms(output: LevelOutput, batch: Batch) -> dict[str, Array]:
  """Unweighted terms, named as their weights in `LossConfig`.

  Args:
    output: Of the level.
    batch: What it was given.

  Returns:
    [] float32 each: cross-entropy of the entropy model and of the expander,
    binary cross-entropy of the ends of segments where they are uncertain, nats,
    0 where the entropy model says them;
    negative log density of the entropy model's Gaussian head, nats per
    dimension, 0 without one; squared distance of segments to their codes, which
    moves the segments, and the same again, which moves a learned codebook.
  """
  is_valid_BS = batch.document_BS >= 0
  compressed, expanded = output.compressed, output.expanded
  return entropy_terms(
    compressed.entropy_nats_BS, compressed.gaussian_nats_BS, batch
  ) | {
    'expander': _masked_sum(expanded.nats_BS, is_valid_BS),
    'end': jnp.zeros(())
    if expanded.end_logits_BS is None
    else _masked_sum(
      sigmoid_cross_entropy(
        expanded.end_logits_BS, compressed.segments.is_end_BS
      ),
      is_valid_BS & ~expanded.end_is_certain_BS,
    ),
    'commitment': _masked_sum(
      compressed.quantized.distance_BP, compressed.is_code_BU
    ),
    'codebook': _masked_sum(
      compressed.quantized.codebook_distance_BP, compressed.is_code_BU
    ),
  }


def entropy_terms(
  nats_BS: Array, gaussian_nats_BS: Array | None, batch: Batch
) -> dict[str, Array]:
  """The terms of an entropy model, the first of `terms`."""
  is_valid_BS = batch.document_BS >= 0
  return {
    'entropy_model': _masked_sum(nats_BS, is_valid_BS),
    'gaussian': jnp.zeros(())
    if gaussian_nats_BS is None
    else _masked_sum(gaussian_nats_BS, is_valid_BS),
  }


def objective(
  terms: dict[str, Array],
  weights: LossConfig,
  num_ids: Array,
  num_levels: int = 1,
) -> Array:
  """Weighted sum of the terms per id, [] float32, nats.

  Args:
    terms: By name, from `terms` or `pyramid_losses.terms`. All are per id of
      the first level in the end, so that what levels cost adds up.
    weights: By the part of a name after the last slash. What it takes to
      predict ids back, `expander` and `end`, is averaged over levels, as the
      original does; the rest is summed.
    num_ids: Of the first level.
    num_levels: Of the model, whether all of them learn or not.

  Returns:
    The objective.
  """
  weighted = []
  for name, total in terms.items():
    weight = getattr(weights, _kind(name))
    if _kind(name) in _AVERAGED:
      weight /= num_levels
    weighted.append(weight * total)
  return sum(weighted) / jnp.maximum(num_ids, 1.0)


def sigmoid_cross_entropy(logits: Array, is_true: Array) -> Array:
  """-log p of a yes or no with log-odds `logits`, nats."""
  return jax.nn.softplus(jnp.where(is_true, -logits, logits))


def _masked_sum(x: Array, mask: Array) -> Array:
  return jnp.sum(jnp.where(mask, x, 0.0))


def _kind(name: str) -> str:
  return name.rpartition('/')[2]


def code_nats(output: CodeSequenceOutput, codes_BP: Array) -> Array:
  """-log p of each code given those before it, summed over its digits.

  Args:
    output: Of a discrete top LM.
    codes_BP: [B, P] int32, the codes it was given.

  Returns:
    [B, P] float32, nats; meaningless in empty slots.
  """
  sizes = tuple(logits.shape[-1] for logits in output.logits)
  digits_BPM = digits_lib.decompose(codes_BP, sizes)
  return sum(
    cross_entropy(logits_BPK, digits_BPM[..., stage])
    for stage, logits_BPK in enumerate(output.logits)
  )


def end_nats(output: CodeSequenceOutput, is_end_BP: Array) -> Array:
  """-log p of whether documents end after each code, [B, P] float32, nats."""
  return sigmoid_cross_entropy(output.end_logits_BP, is_end_BP)


def top_lm_terms(
  output: CodeSequenceOutput, sequence: CodeSequence
) -> dict[str, Array]:
  """Unweighted terms, sums over the codes that are there.

  Args:
    output: Of the top LM.
    sequence: What it was given, and shall predict; gets no gradient.

  Returns:
    [] float32 each: cross-entropy of the codes, nats, 0 if continuous; squared
    distance of predicted vectors to those of the codes, mean over D, 0 if
    discrete; binary cross-entropy of the ends of documents, nats.
  """
  zero = jnp.zeros(())
  is_valid_BP = sequence.document_BP >= 0

  def total(x_BP):
    return jnp.sum(jnp.where(is_valid_BP, x_BP, 0.0))

  return {
    'top_lm_code': zero
    if output.logits is None
    else total(code_nats(output, sequence.codes_BP)),
    'top_lm_vector': zero
    if output.vectors_BPD is None
    else total(_mean_square_error(output, sequence)),
    'top_lm_end': total(end_nats(output, sequence.is_end_BP)),
  }


def _mean_square_error(output, sequence):
  target_BPD = lax.stop_gradient(sequence.vectors_BPD).astype(jnp.float32)
  return jnp.mean(jnp.square(output.vectors_BPD - target_BPD), axis=-1)


def prefixes(num_levels: int) -> list[str]:
  """What stands before the names of each level, `level0/` and so on.

  Nothing, where there is one level only.
  """
  if num_levels == 1:
    return ['']
  return [f'level{number}/' for number in range(num_levels)]


def pyramid_terms(output: PyramidOutput) -> dict[str, Array]:
  """Unweighted terms: sums, as in `losses.terms` and `top_lm_losses.terms`.

  Args:
    output: Of the pyramid.

  Returns:
    [] float32 each, those of a level after its prefix; those of the top LM are
    there if it is, and `top_lm_expander`, cross-entropy of the ids of the top
    level from predicted codes, nats, if it expands.
  """
  found = {
    prefix + name: total
    for prefix, level, batch in zip(
      prefixes(len(output.levels)), output.levels, output.batches, strict=True
    )
    for name, total in level_terms(level, batch).items()
  }
  if output.top_lm is None:
    return found
  found |= top_lm_terms(output.top_lm, output.top_codes)
  if output.top_lm_expanded is not None:
    is_valid_BS = output.batches[-1].document_BS >= 0
    found['top_lm_expander'] = jnp.sum(
      jnp.where(is_valid_BS, output.top_lm_expanded.nats_BS, 0.0)
    )
  return found
