"""Attention of one new id a row to the keys of a cache."""

import jax.numpy as jnp

from abstractinator.types import Array


def cached_attention(
  q_BHA: Array, k_BWGA: Array, v_BWGE: Array, *, sees_BW: Array, scale: float
) -> Array:
  """Attends to the slots that each row sees, all of them at once.

  Args:
    q_BHA: [B, H, A] queries.
    k_BWGA: [B, W, G, A] keys.
    v_BWGE: [B, W, G, E] values; its G may differ from that of the keys.
    sees_BW: [B, W] bool.
    scale: Factor on the scores.

  Returns:
    [B, H, E] of the type of `v_BWGE`; zeros for a row that sees nothing.
    Softmax is in float32.
  """
  batch, heads, _ = q_BHA.shape

  def shared(x_BHX, g):
    return x_BHX.reshape(batch, g, heads // g, -1)

  score = jnp.einsum(
    'bgmd,bwgd->bgmw',
    shared(q_BHA, k_BWGA.shape[2]),
    k_BWGA,
    preferred_element_type=jnp.float32,
  ).reshape(batch, heads, -1)
  score = jnp.where(sees_BW[:, None], score * scale, -jnp.inf)
  largest = jnp.max(score, axis=-1, keepdims=True)
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight = (weight / jnp.where(total > 0, total, 1.0)).astype(v_BWGE.dtype)
  out = jnp.einsum('bgmw,bwge->bgme', shared(weight, v_BWGE.shape[2]), v_BWGE)
  return out.reshape(batch, heads, -1)
