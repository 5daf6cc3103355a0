"""Gradients of pooling from weights: each id only reads its own slot."""

import jax.numpy as jnp

from abstractinator.types import Array


def gradients(
  weight_NQH: Array,
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  out_BPQHE: Array,
  grad_BPQHE: Array,
) -> tuple[Array, Array]:
  """Goes back from slots to ids, by gathers.

  With w the weights and o the outputs, d value = sum over queries of
  w grad[slot], and d score = w grad[slot] . (value - o[slot]).

  Args:
    weight_NQH: [B x S, Q, H] float32 weights, 0 without a slot.
    score_BSQH: [B, S, Q, H] scores.
    value_BSHE: [B, S, H, E] values.
    slot_BS: [B, S] int32 in 0..P-1.
    out_BPQHE: [B, P, Q, H, E] what came out.
    grad_BPQHE: Of it.

  Returns:
    Gradients of scores and of values, of their types.
  """
  bucket_N = buckets(slot_BS, out_BPQHE.shape[1])

  def of_slot(x_BPHE):  # [N, H, E]
    x = x_BPHE.astype(jnp.float32).reshape(-1, *x_BPHE.shape[2:])
    return x[bucket_N]

  # Rows in one: XLA on CPU would give all of a single row to one thread.
  value = value_BSHE.astype(jnp.float32)
  value_NHE = value.reshape(-1, *value_BSHE.shape[2:])
  grad_score, grad_value = [], 0.0
  for q in range(score_BSQH.shape[2]):
    weight_NH, grad_NHE = weight_NQH[:, q], of_slot(grad_BPQHE[:, :, q])
    deviation_NHE = value_NHE - of_slot(out_BPQHE[:, :, q])
    grad_NH = weight_NH * jnp.sum(grad_NHE * deviation_NHE, -1)
    grad_score.append(jnp.where(weight_NH > 0, grad_NH, 0.0))
    grad_value += weight_NH[..., None] * grad_NHE
  grad_score_NQH = jnp.stack(grad_score, axis=1)
  return (
    grad_score_NQH.reshape(score_BSQH.shape).astype(score_BSQH.dtype),
    grad_value.reshape(value_BSHE.shape).astype(value_BSHE.dtype),
  )


def buckets(slot_BS: Array, num_slots: int) -> Array:
  """Slot of each id in the flattened batch, not decreasing."""
  row_B = jnp.arange(slot_BS.shape[0], dtype=jnp.int32)
  return (slot_BS + row_B[:, None] * num_slots).reshape(-1)
