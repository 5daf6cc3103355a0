"""Pooling by sums over sorted segments; the backward pass only gathers."""

import functools

import jax
import jax.numpy as jnp

from abstractinator.ops.segment_pool.blocked_sum import blocked_sum
from abstractinator.ops.segment_pool.gradients import buckets, gradients
from abstractinator.types import Array


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  *,
  num_slots: int,
  is_deterministic: bool = False,
) -> Array:
  """See `api.segment_pool`. Queries take turns: values are never repeated.

  XLA adds floats on GPU in any order; with `is_deterministic` sums are products
  with matrices, and the same from run to run.
  """
  return _pool(
    num_slots, is_deterministic, score_BSQH, value_BSHE, slot_BS, has_slot_BS
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool(num_slots, is_deterministic, *args):
  return _forward(num_slots, is_deterministic, *args)[0]


def _forward(
  num_slots, is_deterministic, score_BSQH, value_BSHE, slot_BS, has_slot_BS
):
  batch, _, queries, heads = score_BSQH.shape
  bucket_N = buckets(slot_BS, num_slots)
  num_buckets = batch * num_slots
  has_slot_N = has_slot_BS.reshape(-1)[:, None, None]
  segment_sum = functools.partial(jax.ops.segment_sum, indices_are_sorted=True)

  def sums(x_NX):
    add = blocked_sum if is_deterministic else segment_sum
    return add(x_NX, bucket_N, num_buckets)

  score_NQH = score_BSQH.astype(jnp.float32).reshape(-1, queries, heads)
  score_NQH = jnp.where(has_slot_N, score_NQH, -jnp.inf)
  largest = jax.ops.segment_max(
    score_NQH, bucket_N, num_buckets, indices_are_sorted=True
  )
  weight_NQH = jnp.exp(score_NQH - largest[bucket_N])
  weight_NQH = jnp.where(has_slot_N, weight_NQH, 0.0)
  total_NQH = sums(weight_NQH)[bucket_N]
  weight_NQH /= jnp.where(total_NQH > 0, total_NQH, 1.0)
  value_NHE = value_BSHE.astype(jnp.float32).reshape(
    -1, heads, value_BSHE.shape[-1]
  )
  value_NHE = jnp.where(has_slot_N, value_NHE, 0.0)
  out = jnp.stack(
    [sums(weight_NQH[:, q, :, None] * value_NHE) for q in range(queries)],
    axis=1,
  )
  out_BPQHE = out.reshape(batch, num_slots, *out.shape[1:])
  out_BPQHE = out_BPQHE.astype(value_BSHE.dtype)
  return out_BPQHE, (weight_NQH, score_BSQH, value_BSHE, slot_BS, out_BPQHE)


def _backward(num_slots, is_deterministic, residuals, grad_BPQHE):
  del num_slots, is_deterministic  # Nothing is added up here.
  return *gradients(*residuals, grad_BPQHE), None, None


_pool.defvjp(_forward, _backward)
