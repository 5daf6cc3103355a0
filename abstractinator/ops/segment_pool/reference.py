"""Dense pooling in float32: slow, plain, the oracle of the others."""

import jax.numpy as jnp

from abstractinator.types import Array


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  *,
  num_slots: int,
) -> Array:
  """See `api.segment_pool`. Builds [B, P, Q, H, S]."""
  score, value = score_BSQH.astype(jnp.float32), value_BSHE.astype(jnp.float32)
  member_BPS = slot_BS[:, None, :] == jnp.arange(num_slots)[None, :, None]
  member_BPS &= has_slot_BS[:, None, :]
  score_BPQHS = jnp.where(
    member_BPS[:, :, None, None], jnp.moveaxis(score, 1, 3)[:, None], -jnp.inf
  )
  largest = jnp.max(score_BPQHS, axis=-1, keepdims=True)
  weight = jnp.exp(score_BPQHS - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bpqhs,bshe->bpqhe', weight, value, precision='highest')
  return out.astype(value_BSHE.dtype)
