"""Dense segment cross-attention in float32, the oracle of the others."""

import jax.numpy as jnp

from abstractinator.types import Array


def segment_cross_attention(
  q_BTHA: Array | None,
  k_BPGA: Array | None,
  v_BPGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
) -> Array:
  """See `api.segment_cross_attention`. Builds [B, H, T, P]."""
  v = v_BPGE.astype(jnp.float32)
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
    q, k = q_BTHA.astype(jnp.float32), k_BPGA.astype(jnp.float32)
    k, v = (
      jnp.broadcast_to(x, (*x.shape[:2], q.shape[2], x.shape[3]))
      for x in (k, v)
    )
    score = jnp.einsum('bthd,bphd->bhtp', q, k, precision='highest') * scale
  score = jnp.where(sees_BTP[:, None], score, -jnp.inf)
  largest = jnp.max(score, axis=-1, keepdims=True)
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bhtp,bphe->bthe', weight, v, precision='highest')
  return out.astype(v_BPGE.dtype)
