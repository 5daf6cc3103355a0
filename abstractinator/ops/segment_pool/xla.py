"""Pooling by sums over sorted segments; the backward pass only gathers."""

import functools

import jax
import jax.numpy as jnp

from abstractinator.types import Array


def segment_pool(
  score_BSQH: Array, value_BSHE: Array, index_BS: Array, *, num_slots: int
) -> Array:
  """See `api.segment_pool`. Queries take turns: values are never repeated."""
  return _pool(num_slots, score_BSQH, value_BSHE, index_BS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(num_slots, score_BSQH, value_BSHE, index_BS):
  return _forward(num_slots, score_BSQH, value_BSHE, index_BS)[0]


def _forward(num_slots, score_BSQH, value_BSHE, index_BS):
  batch, _, queries, heads = score_BSQH.shape
  bucket_N = _buckets(index_BS, num_slots)
  num_buckets = batch * (num_slots + 1)

  def sums(x_NX):
    return jax.ops.segment_sum(
      x_NX, bucket_N, num_buckets, indices_are_sorted=True
    )

  score_NQH = score_BSQH.astype(jnp.float32).reshape(-1, queries, heads)
  largest = jax.ops.segment_max(
    score_NQH, bucket_N, num_buckets, indices_are_sorted=True
  )
  weight_NQH = jnp.exp(score_NQH - largest[bucket_N])
  weight_NQH /= sums(weight_NQH)[bucket_N]
  value_NHE = value_BSHE.astype(jnp.float32).reshape(
    -1, heads, value_BSHE.shape[-1]
  )
  out = jnp.stack(
    [sums(weight_NQH[:, q, :, None] * value_NHE) for q in range(queries)],
    axis=1,
  )
  out_BPQHE = out.reshape(batch, num_slots + 1, *out.shape[1:])[:, :num_slots]
  out_BPQHE = out_BPQHE.astype(value_BSHE.dtype)
  return out_BPQHE, (weight_NQH, score_BSQH, value_BSHE, index_BS, out_BPQHE)


def _backward(num_slots, residuals, grad_BPQHE):
  """With w the weights and o the outputs, each id only reads its own slot.

  d value = sum over queries of w grad[slot];
  d score = w grad[slot] . (value - o[slot]).
  """
  weight_NQH, score_BSQH, value_BSHE, index_BS, out_BPQHE = residuals
  bucket_N = _buckets(index_BS, num_slots)

  def of_slot(x_BPHE):  # [B, S, H, E]
    x = jnp.pad(x_BPHE.astype(jnp.float32), ((0, 0), (0, 1), (0, 0), (0, 0)))
    return x.reshape(-1, *x.shape[2:])[bucket_N].reshape(value_BSHE.shape)

  weight_BSQH = weight_NQH.reshape(score_BSQH.shape)
  value = value_BSHE.astype(jnp.float32)
  grad_score, grad_value = [], 0.0
  for q in range(score_BSQH.shape[2]):
    weight_BSH, grad_BSHE = weight_BSQH[:, :, q], of_slot(grad_BPQHE[:, :, q])
    deviation_BSHE = value - of_slot(out_BPQHE[:, :, q])
    grad_score.append(weight_BSH * jnp.sum(grad_BSHE * deviation_BSHE, -1))
    grad_value += weight_BSH[..., None] * grad_BSHE
  return (
    jnp.stack(grad_score, axis=2).astype(score_BSQH.dtype),
    grad_value.astype(value_BSHE.dtype),
    None,
  )


_pool.defvjp(_forward, _backward)


def _buckets(index_BS: Array, num_slots: int) -> Array:
  """Slot of each id in the flattened batch; each row ends in a spare slot."""
  has_slot = (index_BS >= 0) & (index_BS < num_slots)
  slot_BS = jnp.where(has_slot, index_BS, num_slots)
  row_B = jnp.arange(index_BS.shape[0], dtype=jnp.int32)
  return (slot_BS + row_B[:, None] * (num_slots + 1)).reshape(-1)
