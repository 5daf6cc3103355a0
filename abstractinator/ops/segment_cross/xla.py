"""Segment cross-attention by gathering the few slots each query sees."""

import jax
import jax.numpy as jnp
from jax import lax

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
  """See `api.segment_cross_attention`. Gathers `lookback` + 1 slots a query."""
  slots = v_BPGE.shape[1]
  has_slot_BT = (index_BT >= 0) & (index_BT < slots)

  def gathered(x_BPHX, slot_BT):
    slot_BT = jnp.clip(slot_BT, 0, slots - 1)
    return jax.vmap(lambda x, i: x[i])(x_BPHX, slot_BT)

  if lookback == 0:
    out = gathered(v_BPGE, index_BT)
    return jnp.where(has_slot_BT[..., None, None], out, 0)

  score, value = [], []
  for back in range(lookback + 1):
    slot_BT = index_BT - back
    sees_BT = has_slot_BT & (slot_BT >= lowest_BT)
    key = jnp.broadcast_to(gathered(k_BPGA, slot_BT), q_BTHA.shape)
    score_BTH = scale * jnp.einsum(
      'bthd,bthd->bth', q_BTHA, key, preferred_element_type=jnp.float32
    )
    score.append(jnp.where(sees_BT[..., None], score_BTH, -jnp.inf))
    value.append(gathered(v_BPGE, slot_BT))
  score = jnp.stack(score)
  largest = lax.stop_gradient(jnp.max(score, axis=0))
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=0)
  out = sum(w[..., None] * v for w, v in zip(weight, value, strict=True))
  out /= jnp.where(total > 0, total, 1.0)[..., None]
  return out.astype(v_BPGE.dtype)
