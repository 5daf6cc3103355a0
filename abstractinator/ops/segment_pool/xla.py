"""Pooling by sums over sorted segments; the backward pass only gathers."""

import functools

import jax
import jax.numpy as jnp

from abstractinator.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  num_slots: int,
) -> Array:
  """Pools like `reference.segment_pool`, one query after the other.

  Values are never repeated for each query. On GPU XLA adds in any order.
  """
  return _forward(score_BSQH, value_BSHE, slot_BS, has_slot_BS, num_slots)[0]


def _forward(score_BSQH, value_BSHE, slot_BS, has_slot_BS, num_slots):
  batch, _, queries, heads = score_BSQH.shape
  bucket_N = buckets(slot_BS, num_slots)
  num_buckets = batch * num_slots
  has_slot_N = has_slot_BS.reshape(-1)[:, None, None]

  def sums(x_NX):
    return jax.ops.segment_sum(
      x_NX, bucket_N, num_buckets, indices_are_sorted=True
    )

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


def _backward(num_slots, saved, grad_BPQHE):
  del num_slots
  grads = gradients(*(*saved, grad_BPQHE))
  return *grads, None, None


segment_pool.defvjp(_forward, _backward)


def buckets(slot_BS: Array, num_slots: int) -> Array:
  """Returns the slot of each id in the flattened batch, not decreasing, [N]."""
  row_B = jnp.arange(slot_BS.shape[0], dtype=jnp.int32)
  return (slot_BS + row_B[:, None] * num_slots).reshape(-1)


def gradients(
  weight_NQH: Array,
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  out_BPQHE: Array,
  grad_BPQHE: Array,
) -> tuple[Array, Array]:
  """Computes gradients of pooling: each id gathers from its own slot.

  With w the weights and o the outputs, d value = sum over queries of
  w grad[slot], and d score = w grad[slot] . (value - o[slot]).

  Weights are [N, Q, H] float32, 0 without a slot, where N is B x S. The
  gradients have the shapes and types of the scores and of the values.
  """
  bucket_N = buckets(slot_BS, out_BPQHE.shape[1])

  def at_own_slot(x_BPHE: Array) -> Array:  # [N, H, E]
    x = x_BPHE.astype(jnp.float32).reshape(-1, *x_BPHE.shape[2:])
    return x[bucket_N]

  # Rows are one here: XLA on CPU would give all of a row to one thread.
  value = value_BSHE.astype(jnp.float32)
  value_NHE = value.reshape(-1, *value_BSHE.shape[2:])
  grad_score: list[Array] = []
  grad_value = jnp.zeros_like(value_NHE)
  for q in range(score_BSQH.shape[2]):
    weight_NH, grad_NHE = weight_NQH[:, q], at_own_slot(grad_BPQHE[:, :, q])
    deviation_NHE = value_NHE - at_own_slot(out_BPQHE[:, :, q])
    grad_NH = weight_NH * jnp.sum(grad_NHE * deviation_NHE, -1)
    grad_score.append(jnp.where(weight_NH > 0, grad_NH, 0.0))
    grad_value += weight_NH[..., None] * grad_NHE
  grad_score_NQH = jnp.stack(grad_score, axis=1)
  return (
    grad_score_NQH.reshape(score_BSQH.shape).astype(score_BSQH.dtype),
    grad_value.reshape(value_BSHE.shape).astype(value_BSHE.dtype),
  )
