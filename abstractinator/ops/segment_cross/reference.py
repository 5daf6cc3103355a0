"""Dense segment cross-attention in float32, the oracle of the others."""

import jax
import jax.numpy as jnp

from abstractinator.ops.attention.shapes import repeat_heads
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
  """Attends as `api.segment_cross_attention`; builds [B, H, T, U].

  Without queries and keys all scores are 0.
  """
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
  if q_BTHA is None or k_BUGA is None:
    score = jnp.zeros((1, 1, 1, 1))
  else:
    q, heads = q_BTHA.astype(jnp.float32), q_BTHA.shape[2]
    k, v = (repeat_heads(x, heads) for x in (k_BUGA.astype(jnp.float32), v))
    score = jnp.einsum('bthd,buhd->bhtu', q, k, precision='highest') * scale
  sees = sees_BTU[:, None]
  score = jnp.broadcast_to(score, jnp.broadcast_shapes(score.shape, sees.shape))
  weight = jax.nn.softmax(score, where=sees)
  out = jnp.einsum('bhtu,buhe->bthe', weight, v, precision='highest')
  return out.astype(v_BUGE.dtype)
