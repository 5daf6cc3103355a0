"""Causal attention over all earlier ids, without their square in memory.

A loop over pairs of a block of queries and a block of keys no later keeps a
running softmax; the backward pass goes over the same pairs again. Only the
result and one number a query are kept between the two.

Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
  """See `api.attention`, without window. Memory grows as S * block."""
  batch, size, heads, _ = q_BSHA.shape
  block = min(_BLOCK, size)
  num_blocks = -(-size // block)

  def blocked(x, fill=0):
    """[B, S, ...] -> [n, B, block, ...]."""
    pad = ((0, 0), (0, num_blocks * block - size)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, pad, constant_values=fill)
    return jnp.moveaxis(x.reshape(batch, num_blocks, block, *x.shape[2:]), 1, 0)

  q, k, v = (jnp.moveaxis(blocked(x), 3, 2) for x in (q_BSHA, k_BSGA, v_BSGE))
  out = _attention(q, k, v, blocked(group_BS, -1), scale)
  # [n, B, H, block, E] -> [B, S, H, E].
  out = out.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, v.shape[-1])
  return out[:, :size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, group, scale):
  """[n, B, H, block, A], [n, B, G, block, A and E] to [n, B, H, block, E]."""
  out, _ = _forward(q, k, v, group, scale)
  return out


def _forward(q, k, v, group, scale):
  shape = q.shape[:-1]

  def pair(carry, indices):
    out, largest, total = carry
    i, j = indices
    score = _scores(q, k, group, i, j, scale)
    new = jnp.maximum(largest[i], jnp.max(score, axis=-1))
    # A query that has seen nothing yet has no largest score.
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
  return (out / total[..., None]).astype(v.dtype), log_total


def _save(q, k, v, group, scale):
  out, log_total = _forward(q, k, v, group, scale)
  return out, (q, k, v, group, out, log_total)


def _backward(scale, saved, grad):
  q, k, v, group, out, log_total = saved
  # What the softmax takes off every gradient of a query's weights.
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
  grads = (g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))
  return *grads, None


_attention.defvjp(_save, _backward)


def _pairs(num_blocks: int) -> tuple[Array, Array]:
  """Blocks of queries, and of keys none of which is later."""
  return tuple(jnp.asarray(x, jnp.int32) for x in np.tril_indices(num_blocks))


def _scores(q, k, group, i, j, scale):
  """Scores of a pair, [B, H, block, block] float32; -inf where unseen."""
  block = q.shape[3]
  position = jnp.arange(block)
  sees = (
    ((i - j) * block + position[:, None] >= position[None, :])
    & (group[i][:, :, None] == group[j][:, None, :])
    & (group[i][:, :, None] >= 0)
  )
  score = _product(q[i], jnp.swapaxes(k[j], -1, -2)) * scale
  return jnp.where(sees[:, None], score, -jnp.inf)


def _product(x_BHQX, y_BGXY):
  """Matrix products of each head, with that of the heads it shares."""
  batch, heads, size, width = x_BHQX.shape
  shared = y_BGXY.shape[1]
  x = x_BHQX.reshape(batch, shared, -1, width)
  out = jnp.matmul(x, y_BGXY, preferred_element_type=jnp.float32)
  return out.reshape(batch, heads, size, -1)


def _product_over_queries(x_BHQK, y_BHQY, shared):
  """[B, G, K, Y] sums over the queries of the heads that share one."""
  x, y = (
    z.reshape(z.shape[0], shared, -1, z.shape[-1]) for z in (x_BHQK, y_BHQY)
  )
  return jnp.matmul(
    jnp.swapaxes(x, -1, -2), y, preferred_element_type=jnp.float32
  )
