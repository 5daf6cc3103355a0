"""Softmax-weighted means of vectors that come one at a time."""

import flax.struct
import jax.numpy as jnp

from abstractinator.types import Array


@flax.struct.dataclass
class RunningPool:
  """The mean so far of each row; the parts of one division.

  Scores are [B, ...] and their values [B, ..., E] with any axes between, as
  heads, or queries and heads.

  Attributes:
    largest: [B, ...] float32, the largest score; -inf before the first.
    total: [B, ...] float32, sum of the weights exp(score - largest).
    weighted: [B, ..., E] float32, sum of the values times their weights.

  Source: Milakov and Gimelshein, Online normalizer calculation for softmax,
    arXiv:1805.02867.
  """

  largest: Array
  total: Array
  weighted: Array


def of_rows(score_BSX: Array, value_BSX: Array, is_in_BS: Array) -> RunningPool:
  """The pool of some ids of whole rows.

  Args:
    score_BSX: [B, S, ...].
    value_BSX: [B, S, ..., E].
    is_in_BS: [B, S] bool, ids that count; a row may have none.

  Returns:
    The pool.
  """
  is_in = _expand(is_in_BS, score_BSX)
  score = jnp.where(is_in, score_BSX.astype(jnp.float32), -jnp.inf)
  largest = jnp.max(score, axis=1)
  weight = jnp.exp(score - _finite(largest)[:, None])
  return RunningPool(
    largest=largest,
    total=jnp.sum(weight, axis=1),
    weighted=jnp.sum(weight[..., None] * value_BSX, axis=1),
  )


def add(
  pool: RunningPool, score_BX: Array, value_BX: Array, is_first_B: Array
) -> RunningPool:
  """The pool with one more vector a row.

  Args:
    pool: So far.
    score_BX: [B, ...].
    value_BX: [B, ..., E].
    is_first_B: [B] bool, rows that begin anew with this vector.

  Returns:
    The pool.
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
  """[B, ..., E] float32; zeros where nothing has come."""
  total = jnp.where(pool.total > 0, pool.total, 1.0)
  return pool.weighted / total[..., None]


def _expand(x: Array, like: Array) -> Array:
  return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))


def _finite(largest: Array) -> Array:
  return jnp.where(jnp.isfinite(largest), largest, 0.0)
