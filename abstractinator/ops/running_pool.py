"""Softmax-weighted mean of vectors that come one at a time."""

import flax.struct
import jax.numpy as jnp

from abstractinator.types import Array


@flax.struct.dataclass
class RunningPool:
  """Numerator and denominator of the mean so far, one entry per row.

  Scores are [B, ...] and their values [B, ..., E]. The axes between (X in
  names) are free, such as heads, or queries and heads.

  Attributes:
    largest: Largest score so far, [B, ...] float32; -inf before the first.
    total: Sum of the weights exp(score - largest), [B, ...] float32.
    weighted: Sum of the values times their weights, [B, ..., E] float32.

  Source: Milakov and Gimelshein, Online normalizer calculation for softmax,
    arXiv:1805.02867.
  """

  largest: Array
  total: Array
  weighted: Array


def of_rows(score_BSX: Array, value_BSX: Array, is_in_BS: Array) -> RunningPool:
  """Returns the pool of some ids of whole rows.

  Args:
    score_BSX: Scores, [B, S, ...].
    value_BSX: Values, [B, S, ..., E].
    is_in_BS: True for ids that count, [B, S] bool; a row may have none.
  """
  is_in = _expand(is_in_BS, score_BSX)
  score = jnp.where(is_in, score_BSX.astype(jnp.float32), -jnp.inf)
  largest = jnp.max(score, axis=1)
  finite = jnp.where(jnp.isfinite(largest), largest, 0.0)
  weight = jnp.exp(score - finite[:, None])
  return RunningPool(
    largest=largest,
    total=jnp.sum(weight, axis=1),
    weighted=jnp.sum(weight[..., None] * value_BSX, axis=1),
  )


def add(
  pool: RunningPool, score_BX: Array, value_BX: Array, is_first_B: Array
) -> RunningPool:
  """Returns the pool with one more vector per row.

  Args:
    pool: Pool of the vectors before.
    score_BX: Scores of the new vectors, [B, ...].
    value_BX: Values, [B, ..., E].
    is_first_B: True for rows that start a new mean with this vector, [B] bool.
  """
  score = score_BX.astype(jnp.float32)
  before = jnp.where(_expand(is_first_B, score), -jnp.inf, pool.largest)
  largest = jnp.maximum(before, score)
  kept, weight = jnp.exp(before - largest), jnp.exp(score - largest)
  return RunningPool(
    largest=largest,
    total=kept * pool.total + weight,
    weighted=kept[..., None] * pool.weighted + weight[..., None] * value_BX,
  )


def mean(pool: RunningPool) -> Array:
  """Returns the mean, [B, ..., E] float32; zeros before the first vector."""
  total = jnp.where(pool.total > 0, pool.total, 1.0)
  return pool.weighted / total[..., None]


def _expand(x: Array, like: Array) -> Array:
  """Adds axes of size 1 at the end of `x`, up to the rank of `like`."""
  return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))
