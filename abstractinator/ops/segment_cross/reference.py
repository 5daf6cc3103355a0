"""Dense segment cross-attention in float32, the oracle of the others."""

import jax
import jax.numpy as jnp

from abstractinator.ops.attention.shapes import repeat_heads
from abstractinator.types import Array


def segment_cross_attention(
  q_BTHA: Array,
  k_BUGA: Array,
  v_BUGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
  rows_per_slot: int,
) -> Array:
  """Implements `api.segment_cross_attention`; builds [B, H, T, U]."""
  rows, heads = v_BUGE.shape[1], q_BTHA.shape[2]
  q, k, v = (
    repeat_heads(x.astype(jnp.float32), heads) for x in (q_BTHA, k_BUGA, v_BUGE)
  )
  slot_U = jnp.arange(rows) // rows_per_slot
  index, lowest = index_BT[..., None], lowest_BT[..., None]
  sees_BTU = (
    (slot_U <= index)
    & (slot_U >= index - lookback)
    & (slot_U >= lowest)
    & (index >= 0)
    & (index < rows // rows_per_slot)
  )
  score = jnp.einsum('bthd,buhd->bhtu', q, k, precision='highest') * scale
  weight = jax.nn.softmax(score, where=sees_BTU[:, None])
  out = jnp.einsum('bhtu,buhe->bthe', weight, v, precision='highest')
  return out.astype(v_BUGE.dtype)
