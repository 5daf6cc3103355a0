"""Segment cross-attention by gathering the few rows each query sees."""

import jax.numpy as jnp
from jax import lax

from abstractinator.ops.segment_cross.fetch import fetch_rows
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
  """See `api.segment_cross_attention`.

  Gathers the rows of `lookback` + 1 slots a query.
  """
  rows = v_BUGE.shape[1]
  has_slot_BT = (index_BT >= 0) & (index_BT < rows // rows_per_slot)

  def gathered(x_BUHX, row_BT):
    return fetch_rows(x_BUHX, jnp.clip(row_BT, 0, rows - 1))

  score, value = [], []
  for back in range(lookback + 1):
    slot_BT = index_BT - back
    sees_BT = has_slot_BT & (slot_BT >= lowest_BT)
    for number in range(rows_per_slot):
      row_BT = slot_BT * rows_per_slot + number
      key = jnp.broadcast_to(gathered(k_BUGA, row_BT), q_BTHA.shape)
      score_BTH = scale * jnp.einsum(
        'bthd,bthd->bth', q_BTHA, key, preferred_element_type=jnp.float32
      )
      score.append(jnp.where(sees_BT[..., None], score_BTH, -jnp.inf))
      value.append(gathered(v_BUGE, row_BT))
  score = jnp.stack(score)
  largest = lax.stop_gradient(jnp.max(score, axis=0))
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=0)
  out = sum(w[..., None] * v for w, v in zip(weight, value, strict=True))
  out /= jnp.where(total > 0, total, 1.0)[..., None]
  return out.astype(v_BUGE.dtype)
