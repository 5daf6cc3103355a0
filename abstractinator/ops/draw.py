"""Draws of rows that each have a key and filters of their own.

Both are arrays: other settings are no other program, and what a row draws does
not depend on the rows beside it.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.likeliest import likeliest
from abstractinator.types import Array


@flax.struct.dataclass
class Filters:
  """What `sampling.filter_logits` takes, for each row; see there.

  Attributes:
    temperature_B: [B] float32; 0 takes the most likely id.
    top_k_B: [B] int32.
    top_p_B: [B] float32.
    min_p_B: [B] float32.
  """

  temperature_B: Array
  top_k_B: Array
  top_p_B: Array
  min_p_B: Array


@flax.struct.dataclass
class Draws:
  """How rows draw.

  Attributes:
    key_B: [B] keys of jax.random.
    filters: [B] each.
    path: Numbers, [B] int32 each, that keys are still to be folded with.
  """

  key_B: Array
  filters: Filters
  path: tuple[Array, ...] = ()

  def fold(self, number: Array | int) -> 'Draws':
    """The same with keys for a number, [B] int32 or one for all rows."""
    number_B = jnp.broadcast_to(jnp.asarray(number), self.key_B.shape)
    return self.replace(path=(*self.path, number_B))

  def repeat(self, times: int) -> 'Draws':
    """Each row `times` times, side by side."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), self)

  def keys(self) -> Array:
    """[B] keys, folded."""
    key_B = self.key_B
    for number_B in self.path:
      key_B = jax.vmap(jax.random.fold_in)(key_B, number_B)
    return key_B

  def unless_greedy(
    self, draw: Callable[[Array], Array], greedy_B: Array
  ) -> Array:
    """Where the temperature is 0 `greedy_B`, else what keys [B] draw."""
    is_greedy_B = self.filters.temperature_B == 0
    # Whoever does not draw does not pay for it.
    return lax.cond(
      jnp.all(is_greedy_B),
      lambda: greedy_B,
      lambda: jnp.where(is_greedy_B, greedy_B, draw(self.keys())),
    )


def draw_ids(draws: Draws, logits_BV: Array) -> Array:
  """Draws an id a row.

  Args:
    draws: Of the rows.
    logits_BV: [B, V] float32; -inf for ids that cannot be.

  Returns:
    [B] int32.
  """

  def draw(key_B):
    filtered_BV = filter_rows(draws.filters, logits_BV)
    ids_B = jax.vmap(jax.random.categorical)(key_B, filtered_BV)
    return ids_B.astype(jnp.int32)

  best_B = likeliest(logits_BV)
  return draws.unless_greedy(draw, best_B)


def draw_bools(draws: Draws, log_odds_B: Array) -> Array:
  """Draws yes or no a row; of the filters only the temperature counts.

  Args:
    draws: Of the rows.
    log_odds_B: [B] float32.

  Returns:
    [B] bool; with a temperature of 0 whether yes is the more likely.
  """

  def draw(key_B):
    uniform_B = jax.vmap(jax.random.uniform)(key_B)
    odds_B = log_odds_B / jnp.maximum(draws.filters.temperature_B, 1e-6)
    return uniform_B < jax.nn.sigmoid(odds_B)

  return draws.unless_greedy(draw, log_odds_B > 0)


def filter_rows(filters: Filters, logits_BV: Array) -> Array:
  """`sampling.filter_logits` with filters of each row.

  Args:
    filters: Of the rows.
    logits_BV: [B, V] float32.

  Returns:
    [B, V] float32.
  """
  is_greedy_B = filters.temperature_B == 0
  temperature_B = jnp.where(is_greedy_B, 1, filters.temperature_B)
  top_k_B = jnp.where(is_greedy_B, 1, filters.top_k_B)
  top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  logits_BV = (logits_BV - top_B1) / temperature_B[:, None]
  needs_order = jnp.any((top_k_B > 0) | (filters.top_p_B < 1))
  logits_BV = lax.cond(
    needs_order,
    lambda x: _keep_top(x, top_k_B, filters.top_p_B),
    lambda x: x,
    logits_BV,
  )
  # The most likely id has 0 by now.
  least_B1 = jnp.log(filters.min_p_B)[:, None]
  return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _keep_top(logits_BV: Array, top_k_B: Array, top_p_B: Array) -> Array:
  size = logits_BV.shape[-1]
  order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
  sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
  count_B1 = jnp.where(top_k_B > 0, top_k_B, size)[:, None]
  is_kept_BV = jnp.arange(size) < count_B1
  p_BV = jax.nn.softmax(jnp.where(is_kept_BV, sorted_BV, -jnp.inf), axis=-1)
  before_BV = jnp.pad(jnp.cumsum(p_BV, axis=-1), ((0, 0), (1, 0)))[:, :-1]
  is_nucleus_BV = (before_BV <= top_p_B[:, None]) | (top_p_B == 1)[:, None]
  is_kept_BV &= is_nucleus_BV
  rank_BV = jnp.argsort(order_BV, axis=-1)
  is_kept_BV = jnp.take_along_axis(is_kept_BV, rank_BV, axis=-1)
  return jnp.where(is_kept_BV, logits_BV, -jnp.inf)
