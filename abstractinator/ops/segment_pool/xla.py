"""Pooling by sums over sorted segments; the backward pass only gathers."""

import functools

import jax
import jax.numpy as jnp

from abstractinator.types import Array


def segment_pool(
  score_BSH: Array, value_BSHE: Array, index_BS: Array, *, num_slots: int
) -> Array:
  """See `api.segment_pool`."""
  return _pool(num_slots, score_BSH, value_BSHE, index_BS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(num_slots, score_BSH, value_BSHE, index_BS):
  return _forward(num_slots, score_BSH, value_BSHE, index_BS)[0]


def _forward(num_slots, score_BSH, value_BSHE, index_BS):
  batch, _, heads = score_BSH.shape
  bucket_N = _buckets(index_BS, num_slots)
  num_buckets = batch * (num_slots + 1)

  def sums(x_NX):
    return jax.ops.segment_sum(
      x_NX, bucket_N, num_buckets, indices_are_sorted=True
    )

  score_NH = score_BSH.astype(jnp.float32).reshape(-1, heads)
  largest = jax.ops.segment_max(
    score_NH, bucket_N, num_buckets, indices_are_sorted=True
  )
  weight_NH = jnp.exp(score_NH - largest[bucket_N])
  weight_NH /= sums(weight_NH)[bucket_N]
  value_NHE = value_BSHE.astype(jnp.float32).reshape(
    -1, heads, value_BSHE.shape[-1]
  )
  out = sums(weight_NH[..., None] * value_NHE)
  out_BPHE = out.reshape(batch, num_slots + 1, *out.shape[1:])[:, :num_slots]
  out_BPHE = out_BPHE.astype(value_BSHE.dtype)
  return out_BPHE, (weight_NH, score_BSH, value_BSHE, index_BS, out_BPHE)


def _backward(num_slots, residuals, grad_BPHE):
  """With w the weights and o the outputs, each id only reads its own slot.

  d value = w grad[slot];  d score = w grad[slot] . (value - o[slot]).
  """
  weight_NH, score_BSH, value_BSHE, index_BS, out_BPHE = residuals
  bucket_N = _buckets(index_BS, num_slots)

  def of_slot(x_BPHE):  # [B, S, H, E]
    x = jnp.pad(x_BPHE.astype(jnp.float32), ((0, 0), (0, 1), (0, 0), (0, 0)))
    return x.reshape(-1, *x.shape[2:])[bucket_N].reshape(value_BSHE.shape)

  weight_BSH = weight_NH.reshape(score_BSH.shape)
  grad_BSHE = of_slot(grad_BPHE)
  deviation_BSHE = value_BSHE.astype(jnp.float32) - of_slot(out_BPHE)
  grad_score = weight_BSH * jnp.sum(grad_BSHE * deviation_BSHE, axis=-1)
  grad_value = weight_BSH[..., None] * grad_BSHE
  return (
    grad_score.astype(score_BSH.dtype),
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
