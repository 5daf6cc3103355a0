"""Dense segment cross-attention in float32, the oracle of the others."""

import jax.numpy as jnp

from abstractinator.types import Array


def segment_cross_attention(
  q_BTHA: Array | None,
  k_BUGA: Array | None,
  v_BUGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
  rows_per_slot: int,
) -> Array:
  """See `api.segment_cross_attention`. Builds [B, H, T, U]."""
  v = v_BUGE.astype(jnp.float32)
  rows = v.shape[1]
  slot_U = jnp.arange(rows) // rows_per_slot
  index, lowest = index_BT[..., None], lowest_BT[..., None]
  sees_BTU = (
    (slot_U <= index)
    & (slot_U >= index - lookback)
    & (slot_U >= lowest)
    & (index >= 0)
    & (index < rows // rows_per_slot)
  )
  score = jnp.zeros(())
  if lookback or rows_per_slot > 1:
    q, k = q_BTHA.astype(jnp.float32), k_BUGA.astype(jnp.float32)
    k, v = (
      jnp.broadcast_to(x, (*x.shape[:2], q.shape[2], x.shape[3]))
      for x in (k, v)
    )
    score = jnp.einsum('bthd,buhd->bhtu', q, k, precision='highest') * scale
  score = jnp.where(sees_BTU[:, None], score, -jnp.inf)
  largest = jnp.max(score, axis=-1, keepdims=True)
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bhtu,buhe->bthe', weight, v, precision='highest')
  return out.astype(v_BUGE.dtype)
