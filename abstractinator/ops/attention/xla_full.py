"""Causal attention without a window, in memory linear in the number of ids.

A loop over pairs of a block of queries and a block of keys that is no later
keeps a running softmax; the backward pass goes over the same pairs again. Only
the result and one number per query are kept between the two passes. In shapes,
n is the number of blocks of ids of a row; a, b and c are any sizes.

Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from abstractinator.ops.attention.shapes import in_blocks
from abstractinator.types import Array

_BLOCK = 128


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  scale: float,
) -> Array:
  """Implements `api.attention` without a window by a running softmax.

  Time grows as half of S x S, memory as S x block.
  """
  batch, size, heads, _ = q_BSHA.shape
  block = min(_BLOCK, size)

  def block_first(x, fill=0):
    """[B, S, ...] -> [n, B, block, ...]."""
    return jnp.moveaxis(in_blocks(x, block, fill), 1, 0)

  q, k, v = (
    jnp.moveaxis(block_first(x), 3, 2) for x in (q_BSHA, k_BSGA, v_BSGE)
  )
  out = _attention(q, k, v, block_first(group_BS, -1), scale)
  # [n, B, H, block, E] -> [B, S, H, E].
  out = out.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, v.shape[-1])
  return out[:, :size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, group, scale):
  """Computes attention of arrays whose axis of blocks comes first.

  Shapes are [n, B, H, block, A] for queries, [n, B, G, block, A] for keys,
  [n, B, G, block, E] for values and [n, B, block] for groups; the result is
  [n, B, H, block, E].
  """
  return _forward(q, k, v, group, scale)[0]


def _forward(q, k, v, group, scale):
  """Returns the result, and with it what the backward pass reads.

  That is all arguments, the result, and the log of each query's total weight.
  """
  shape = q.shape[:-1]

  def pair(carry, indices):
    out, largest, total = carry
    i, j = indices
    score = _scores(q, k, group, i, j, scale)
    new = jnp.maximum(largest[i], jnp.max(score, axis=-1))
    # A query that has seen no key yet has a largest score of -inf.
    shift = jnp.where(jnp.isfinite(new), new, 0.0)
    weight = jnp.exp(score - shift[..., None])
    decay = jnp.exp(largest[i] - shift)
    value = _product(weight.astype(v.dtype), v[j])
    return (
      out.at[i].set(out[i] * decay[..., None] + value),
      largest.at[i].set(new),
      total.at[i].set(total[i] * decay + jnp.sum(weight, axis=-1)),
    ), None

  start = (
    jnp.zeros((*shape, v.shape[-1]), jnp.float32),
    jnp.full(shape, -jnp.inf, jnp.float32),
    jnp.zeros(shape, jnp.float32),
  )
  (out, largest, total), _ = lax.scan(pair, start, _pairs(len(q)))
  is_seeing = total > 0
  total = jnp.where(is_seeing, total, 1.0)
  log_total = jnp.where(is_seeing, largest, 0.0) + jnp.log(total)
  out = (out / total[..., None]).astype(v.dtype)
  return out, (q, k, v, group, out, log_total)


def _backward(scale, saved, grad):
  q, k, v, group, out, log_total = saved
  # Mean gradient of a query's weights, which the softmax's pullback subtracts.
  mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

  def pair(carry, indices):
    grad_q, grad_k, grad_v = carry
    i, j = indices
    score = _scores(q, k, group, i, j, scale)
    weight = jnp.exp(score - log_total[i][..., None])
    grad_weight = _product(grad[i], jnp.swapaxes(v[j], -1, -2))
    grad_score = weight * (grad_weight - mean[i][..., None]) * scale
    grad_score = grad_score.astype(q.dtype)
    weight = weight.astype(v.dtype)
    return (
      grad_q.at[i].add(_product(grad_score, k[j])),
      grad_k.at[j].add(_product_over_queries(grad_score, q[i], k.shape[2])),
      grad_v.at[j].add(_product_over_queries(weight, grad[i], v.shape[2])),
    ), None

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
  grads, _ = lax.scan(pair, start, _pairs(len(q)))
  return *jax.tree.map(lambda g, x: g.astype(x.dtype), grads, (q, k, v)), None


_attention.defvjp(_forward, _backward)


def _pairs(num_blocks: int) -> tuple[Array, Array]:
  """Returns blocks of queries, and for each a block of keys no later."""
  i, j = np.tril_indices(num_blocks)
  return jnp.asarray(i, jnp.int32), jnp.asarray(j, jnp.int32)


def _scores(q, k, group, i, j, scale):
  """Returns scores of blocks i and j, [B, H, block, block] float32.

  The score of a key that a query does not see is -inf.
  """
  block = q.shape[3]
  position = jnp.arange(block)
  sees = (
    ((i - j) * block + position[:, None] >= position[None, :])
    & (group[i][:, :, None] == group[j][:, None, :])
    & (group[i][:, :, None] >= 0)
  )
  score = _product(q[i], jnp.swapaxes(k[j], -1, -2)) * scale
  return jnp.where(sees[:, None], score, -jnp.inf)


def _product(x, y):
  """Returns the products of x [B, H, a, b] and y [B, G, b, c] in float32."""
  batch, heads, size, width = x.shape
  x = x.reshape(batch, y.shape[1], -1, width)
  out = jnp.matmul(x, y, preferred_element_type=jnp.float32)
  return out.reshape(batch, heads, size, -1)


def _product_over_queries(x, y, shared):
  """Returns x [B, H, a, b], transposed, times y [B, H, a, c] in float32.

  The result is [B, G, b, c], where G is `shared`: heads that have a key or a
  value in common are summed.
  """
  x, y = (z.reshape(z.shape[0], shared, -1, z.shape[-1]) for z in (x, y))
  return jnp.matmul(
    jnp.swapaxes(x, -1, -2), y, preferred_element_type=jnp.float32
  )
