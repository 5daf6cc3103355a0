"""Predictions of ids: filters, entropy, surprisal and draws.

Filters and keys are arrays with one entry per row, so that other settings need
no other program, and what a row draws does not depend on the rows beside it.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from optax.losses import softmax_cross_entropy_with_integer_labels

from abstractinator.types import Array

BITS_PER_NAT = math.log2(math.e)


@flax.struct.dataclass
class Filters:
  """Filters that exclude unlikely ids, in the order in which they apply.

  Each is one number per row, or one Python number for all rows. Filters that
  are off as Python numbers cost nothing.

  Attributes:
    temperature_B: Divisor of the logits, [B] float32, at least 1e-6; or 0,
      which keeps the most likely id only.
    top_k_B: Number of most likely ids that are kept, [B] int32; 0 for all.
    top_p_B: Probability, [B] float32. The fewest most likely ids whose sum is
      above it are kept; the one that crosses it stays. 1 for all.
    min_p_B: Factor, [B] float32. Ids at least this many times as probable as
      the most likely one are kept; 0 for all.

  Source: top_k Fan et al., arXiv:1805.04833; top_p Holtzman et al.,
    arXiv:1904.09751; min_p Nguyen et al., arXiv:2407.01082.
  """

  temperature_B: Array | float = 1.0
  top_k_B: Array | int = 0
  top_p_B: Array | float = 1.0
  min_p_B: Array | float = 0.0


def filter_logits(logits: Array, filters: Filters) -> Array:
  """Excludes unlikely ids.

  The most likely id always stays; of equal ids the lower one counts as the more
  likely.

  Args:
    logits: Scores of the ids, [..., V], any float type.
    filters: Filters of each row, [...], or of all rows.

  Returns:
    [..., V] float32, divided by the temperature, up to a constant; -inf for
    excluded ids.
  """
  logits = logits.astype(jnp.float32)
  temperature, top_k = filters.temperature_B, filters.top_k_B
  top_p, min_p = filters.top_p_B, filters.min_p_B
  is_off = (temperature == 1) & (top_k == 0) & (top_p == 1) & (min_p == 0)
  if is_off is True:
    return logits
  is_greedy = temperature == 0
  temperature, top_k = (
    jnp.where(is_greedy, 1, x)[..., None] for x in (temperature, top_k)
  )
  top_p = jnp.asarray(top_p)[..., None]
  # The largest stays finite whatever divides it.
  largest = jnp.max(logits, axis=-1, keepdims=True)
  logits = (logits - largest) / temperature
  logits = lax.cond(
    jnp.any((top_k > 0) | (top_p < 1)),
    lambda x: _keep_top(x, top_k, top_p),
    lambda x: x,
    logits,
  )
  # The most likely id has 0 by now.
  least = jnp.log(jnp.asarray(min_p))[..., None]
  return jnp.where(logits >= least, logits, -jnp.inf)


def _keep_top(logits: Array, top_k: Array, top_p: Array) -> Array:
  """Applies top_k, then top_p; both are [..., 1]."""
  size = logits.shape[-1]
  order = jnp.argsort(-logits, axis=-1, stable=True)
  in_order = jnp.take_along_axis(logits, order, axis=-1)
  is_kept = jnp.arange(size) < jnp.where(top_k > 0, top_k, size)
  p = jax.nn.softmax(jnp.where(is_kept, in_order, -jnp.inf), axis=-1)
  # An id stays if the sum of those before it is not above top_p yet.
  widths = [(0, 0)] * (p.ndim - 1) + [(1, 0)]
  before = jnp.pad(jnp.cumsum(p, axis=-1), widths)[..., :-1]
  is_kept &= (before <= top_p) | (top_p == 1)
  is_kept = jnp.take_along_axis(is_kept, jnp.argsort(order, axis=-1), axis=-1)
  return jnp.where(is_kept, logits, -jnp.inf)


def likeliest(logits: Array) -> Array:
  """Returns the id with the largest logit.

  `jnp.argmax` finds the same, but XLA does not vectorise its reduction over
  pairs on CPU; here are two reductions over single numbers.

  Args:
    logits: Scores of the ids, [..., V]; V >= 1.

  Returns:
    [...] int32, the lowest id among equals; 0 if a logit is NaN.
  """
  logits, size = lax.stop_gradient(logits), logits.shape[-1]
  is_less = logits < jnp.max(logits, axis=-1, keepdims=True)
  ids = jnp.where(~is_less, jnp.arange(size, dtype=jnp.int32), size - 1)
  return jnp.min(ids, axis=-1)


def entropy_bits(logits: Array) -> Array:
  """Computes the Shannon entropy of softmax(logits).

  Args:
    logits: Scores of the ids, [..., V], any float type; -inf for ids that
      cannot occur.

  Returns:
    [...] float32, bits, in [0, log2 V].
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  # 0 log 0 is 0.
  terms = jnp.where(jnp.isneginf(log_p), 0.0, jnp.exp(log_p) * log_p)
  return -jnp.sum(terms, axis=-1) * BITS_PER_NAT


def surprisal_bits(logits: Array, ids: Array) -> Array:
  """Returns -log2 softmax(logits)[ids], [...] float32, from [..., V] logits."""
  logits = logits.astype(jnp.float32)
  return softmax_cross_entropy_with_integer_labels(logits, ids) * BITS_PER_NAT


@flax.struct.dataclass
class Draws:
  """Keys and filters by which rows draw.

  Attributes:
    key_B: Keys of jax.random, [B].
    filters: Filters of each row, [B] each.
    path: Numbers that keys are still to be folded with, in order, [B] int32
      each.
  """

  key_B: Array
  filters: Filters
  path: tuple[Array, ...] = ()

  def fold(self, number: Array | int) -> 'Draws':
    """Returns draws with keys for a number, [B] int32 or one for all rows."""
    number_B = jnp.broadcast_to(jnp.asarray(number), self.key_B.shape)
    return dataclasses.replace(self, path=(*self.path, number_B))

  def keys(self) -> Array:
    """Returns the keys, folded with the numbers of the path, [B]."""
    key_B = self.key_B
    for number_B in self.path:
      key_B = jax.vmap(jax.random.fold_in)(key_B, number_B)
    return key_B


def draw_ids(draws: Draws, logits_BV: Array) -> Array:
  """Draws one id per row.

  Args:
    draws: Keys and filters of the rows.
    logits_BV: Scores of the ids, [B, V] float32; -inf for ids that cannot
      occur.

  Returns:
    [B] int32; with a temperature of 0 the most likely id.
  """

  def draw(key_B: Array) -> Array:
    filtered_BV = filter_logits(logits_BV, draws.filters)
    ids_B = jax.vmap(jax.random.categorical)(key_B, filtered_BV)
    return ids_B.astype(jnp.int32)

  return _draw_unless_greedy(draws, draw, likeliest(logits_BV))


def draw_bools(draws: Draws, log_odds_B: Array) -> Array:
  """Draws yes or no per row; of the filters only the temperature counts.

  Args:
    draws: Keys and filters of the rows.
    log_odds_B: Log odds of yes, [B] float32.

  Returns:
    [B] bool; with a temperature of 0 True where yes is the more likely.
  """

  def draw(key_B: Array) -> Array:
    uniform_B = jax.vmap(jax.random.uniform)(key_B)
    odds_B = log_odds_B / jnp.maximum(draws.filters.temperature_B, 1e-6)
    return uniform_B < jax.nn.sigmoid(odds_B)

  return _draw_unless_greedy(draws, draw, log_odds_B > 0)


def _draw_unless_greedy(
  draws: Draws, draw: Callable[[Array], Array], greedy_B: Array
) -> Array:
  """Returns `greedy_B` where the temperature is 0, else what keys [B] draw."""
  is_greedy_B = jnp.equal(draws.filters.temperature_B, 0)
  # Rows that do not draw do not pay for it.
  return lax.cond(
    jnp.all(is_greedy_B),
    lambda: greedy_B,
    lambda: jnp.where(is_greedy_B, greedy_B, draw(draws.keys())),
  )


def hidden_ids(key: Array, row_B: Array, size: int, rate: float) -> Array:
  """Draws the ids that are predicted without the id before them.

  They are fed PAD in its place, so that codes must carry the text. An id is
  hidden from all later ones if the id after it is marked.

  Args:
    key: Key of jax.random, one per training step.
    row_B: Identity of each row, [B] int32, see `Batch`. A row has the same ids
      marked whatever batch or device it is in.
    size: Ids of a row, S.
    rate: Probability that an id is marked.

  Returns:
    [B, S] bool.
  """

  def draw(row: Array) -> Array:
    return jax.random.bernoulli(jax.random.fold_in(key, row), rate, (size,))

  return jax.vmap(draw)(row_B)
