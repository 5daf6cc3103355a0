"""Bodies of the attention kernels for GPU: what one program of a grid does.

A program has one head of one block of ids, and loops over the blocks that it
sees, or that see it. References to those reach over a whole row; nothing is
read before it is asked for. Tiles are as wide as the next power of two, what
is beyond the width of a head is read as 0.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

# See `pallas_tpu_kernels`.
MASK = -1e38
FLOOR = -1e30
_ROWS, _COLUMNS = ((1,), (1,)), ((1,), (0,))


def forward(
  first_ref,
  group_ref,
  q_ref,
  k_ref,
  v_ref,
  out_ref,
  log_total_ref,
  *,
  plan,
):
  """A block of queries: result, and log of the total weight of each."""
  index = pl.program_id(0)
  q = _tile(q_ref, plan.key_width)
  group = group_ref[pl.ds(index * plan.block, plan.block)]

  def meet(near, state):
    largest, total, out = state
    at = pl.ds(near * plan.block, plan.block)
    k = _tile(k_ref.at[at], plan.key_width)
    v = _tile(v_ref.at[at], plan.value_width)
    sees = _sees(group[:, None], group_ref[at][None, :], index - near, 0, plan)
    score = jnp.where(sees, _dot(q, k, _ROWS) * plan.scale, MASK)
    new = jnp.maximum(largest, jnp.max(score, axis=1))
    weight = jnp.exp(score - new[:, None])
    decay = jnp.exp(largest - new)
    total = total * decay + jnp.sum(weight, axis=1)
    value = _dot(weight.astype(v.dtype), v, _COLUMNS)
    return new, total, out * decay[:, None] + value

  start = (
    jnp.full((plan.block,), FLOOR, jnp.float32),
    jnp.zeros((plan.block,), jnp.float32),
    jnp.zeros((plan.block, out_ref.shape[1]), jnp.float32),
  )
  largest, total, out = lax.fori_loop(first_ref[index], index + 1, meet, start)
  is_seeing = total > 0
  total = jnp.where(is_seeing, total, 1.0)
  _put(out_ref, out / total[:, None], plan.value_width)
  # So that the weights of a query that sees nothing are 0 going backward.
  log_total_ref[...] = jnp.where(is_seeing, largest + jnp.log(total), -FLOOR)


def backward_queries(
  first_ref,
  group_ref,
  q_ref,
  k_ref,
  v_ref,
  grad_ref,
  out_ref,
  log_total_ref,
  grad_q_ref,
  mean_ref,
  *,
  plan,
):
  """A block of queries: gradients, and what softmax takes off each weight's."""
  index = pl.program_id(0)
  q = _tile(q_ref, plan.key_width)
  grad = _tile(grad_ref, plan.value_width)
  out = _tile(out_ref, plan.value_width)
  mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=1)
  mean_ref[...] = mean
  log_total = log_total_ref[...]
  group = group_ref[pl.ds(index * plan.block, plan.block)]

  def meet(near, grad_q):
    at = pl.ds(near * plan.block, plan.block)
    k = _tile(k_ref.at[at], plan.key_width)
    v = _tile(v_ref.at[at], plan.value_width)
    sees = _sees(group[:, None], group_ref[at][None, :], index - near, 0, plan)
    score = jnp.where(sees, _dot(q, k, _ROWS) * plan.scale, MASK)
    weight = jnp.exp(score - log_total[:, None])
    grad_score = weight * (_dot(grad, v, _ROWS) - mean[:, None])
    return grad_q + _dot(grad_score.astype(k.dtype), k, _COLUMNS)

  start = jnp.zeros(q.shape, jnp.float32)
  grad_q = lax.fori_loop(first_ref[index], index + 1, meet, start)
  _put(grad_q_ref, grad_q * plan.scale, plan.key_width)


def backward_keys(
  last_ref,
  group_ref,
  q_ref,
  k_ref,
  v_ref,
  grad_ref,
  log_total_ref,
  mean_ref,
  grad_k_ref,
  grad_v_ref,
  *,
  plan,
):
  """A block of keys: gradients of it and of its values, from one head."""
  index = pl.program_id(0)
  k = _tile(k_ref, plan.key_width)
  v = _tile(v_ref, plan.value_width)
  group = group_ref[pl.ds(index * plan.block, plan.block)]

  def meet(near, state):
    grad_k, grad_v = state
    at = pl.ds(near * plan.block, plan.block)
    q = _tile(q_ref.at[at], plan.key_width)
    grad = _tile(grad_ref.at[at], plan.value_width)
    sees = _sees(group[:, None], group_ref[at][None, :], near - index, 1, plan)
    score = jnp.where(sees, _dot(k, q, _ROWS) * plan.scale, MASK)
    weight = jnp.exp(score - log_total_ref[at][None, :])
    grad_v += _dot(weight.astype(grad.dtype), grad, _COLUMNS)
    grad_score = weight * (_dot(v, grad, _ROWS) - mean_ref[at][None, :])
    return grad_k + _dot(grad_score.astype(q.dtype), q, _COLUMNS), grad_v

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  grad_k, grad_v = lax.fori_loop(index, last_ref[index] + 1, meet, start)
  _put(grad_k_ref, grad_k * plan.scale, plan.key_width)
  _put(grad_v_ref, grad_v, plan.value_width)


def _is_inside(shape, width):
  return None if shape[1] == width else (jnp.arange(shape[1]) < width)[None]


def _tile(ref, width):
  """Reads a tile, with zeros beyond the width of a head."""
  mask = _is_inside(ref.shape, width)
  return plt.load(ref, mask=mask, other=None if mask is None else 0)


def _put(ref, value, width):
  plt.store(ref, value.astype(ref.dtype), mask=_is_inside(ref.shape, width))


def _sees(own, other, offset, query_axis, plan):
  """[own, other] bool, where queries are `offset` blocks behind their keys."""
  shape = (plan.block, plan.block)
  iota = functools.partial(lax.broadcasted_iota, jnp.int32, shape)
  distance = iota(query_axis) - iota(1 - query_axis) + offset * plan.block
  sees = (own == other) & (own >= 0) & (distance >= 0)
  return sees if plan.window is None else sees & (distance <= plan.window)


def _dot(x, y, contracting):
  """Sums in float32; by default float32 would be rounded to tf32 first."""
  return lax.dot_general(
    x,
    y,
    (contracting, ((), ())),
    precision='highest' if x.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
