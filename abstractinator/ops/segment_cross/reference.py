"""Dense segment cross-attention in float32, the oracle of the others."""

import jax.numpy as jnp

from abstractinator.types import Array


def segment_cross_attention(
  q_BTHA: Array | None,
  k_BPHA: Array | None,
  v_BPHE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
) -> Array:
  """See `api.segment_cross_attention`. Builds [B, H, T, P]."""
  v = v_BPHE.astype(jnp.float32)
  slots = v.shape[1]
  slot = jnp.arange(slots)
  index, lowest = index_BT[..., None], lowest_BT[..., None]
  sees_BTP = (
    (slot <= index)
    & (slot >= index - lookback)
    & (slot >= lowest)
    & (index >= 0)
    & (index < slots)
  )
  score = jnp.zeros(())
  if lookback:
    q, k = q_BTHA.astype(jnp.float32), k_BPHA.astype(jnp.float32)
    score = jnp.einsum('bthd,bphd->bhtp', q, k, precision='highest') * scale
  score = jnp.where(sees_BTP[:, None], score, -jnp.inf)
  largest = jnp.max(score, axis=-1, keepdims=True)
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bhtp,bphe->bthe', weight, v, precision='highest')
  return out.astype(v_BPHE.dtype)
