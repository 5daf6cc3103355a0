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
  """Attends as `api.segment_cross_attention`.

  It gathers the rows of `lookback` + 1 slots per query. Rows of the batch are
  one row here: XLA on CPU would give all of a row to one thread.

  `jax.nn.softmax` would divide every weight; here the weighted sum of the
  values is divided once.
  """
  batch, rows = v_BUGE.shape[:2]
  has_slot_BT = (index_BT >= 0) & (index_BT < rows // rows_per_slot)
  first_B = rows * jnp.arange(batch, dtype=jnp.int32)
  q_NHA = q_BTHA.reshape(-1, *q_BTHA.shape[2:])

  def gathered(x_BUHX: Array, row_BT: Array) -> Array:
    row_BT = jnp.clip(row_BT, 0, rows - 1) + first_B[:, None]
    x_UHX = x_BUHX.reshape(-1, *x_BUHX.shape[2:])
    return fetch_rows(x_UHX[None], row_BT.reshape(1, -1))[0]

  scores, values = [], []
  for back in range(lookback + 1):
    slot_BT = index_BT - back
    sees_N = (has_slot_BT & (slot_BT >= lowest_BT)).reshape(-1)
    for number in range(rows_per_slot):
      row_BT = slot_BT * rows_per_slot + number
      key = jnp.broadcast_to(gathered(k_BUGA, row_BT), q_NHA.shape)
      score_NH = scale * jnp.einsum(
        'nhd,nhd->nh', q_NHA, key, preferred_element_type=jnp.float32
      )
      scores.append(jnp.where(sees_N[:, None], score_NH, -jnp.inf))
      values.append(gathered(v_BUGE, row_BT))
  score = jnp.stack(scores)
  largest = lax.stop_gradient(jnp.max(score, axis=0))
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=0)
  weighted = [w[..., None] * v for w, v in zip(weight, values, strict=True)]
  out = sum(weighted[1:], start=weighted[0])
  out /= jnp.where(total > 0, total, 1.0)[..., None]
  return out.astype(v_BUGE.dtype).reshape(*index_BT.shape, *out.shape[1:])
