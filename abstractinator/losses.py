"""Every term of the objective and its weight.

Terms are sums in nats over the ids of a batch, so that they add up over
microbatches and devices; the objective is their weighted sum per id.
"""

import jax
import jax.numpy as jnp

from abstractinator.config import LossConfig
from abstractinator.modules.abstractinator import LevelOutput
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


def terms(output: LevelOutput, batch: Batch) -> dict[str, Array]:
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
