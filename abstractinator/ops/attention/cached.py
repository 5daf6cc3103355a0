"""Attention of one new id a row to the keys of a cache."""

import jax.numpy as jnp

from abstractinator.types import Array


def cached_attention(
  q_BHA: Array, k_BGWA: Array, v_BGWE: Array, *, sees_BW: Array, scale: float
) -> Array:
  """Attends to the slots that each row sees, all of them at once.

  Args:
    q_BHA: [B, H, A] queries.
    k_BGWA: [B, G, W, A] keys.
    v_BGWE: [B, G, W, E] values; its G may differ from that of the keys.
    sees_BW: [B, W] bool.
    scale: Factor on the scores.

  Returns:
    [B, H, E] of the type of `v_BGWE`; zeros for a row that sees nothing.
    Softmax is in float32.
  """
  batch, heads, _ = q_BHA.shape

  def shared(x_BHX, g):
    return x_BHX.reshape(batch, g, heads // g, -1)

  score = jnp.einsum(
    'bgmd,bgwd->bgmw',
    shared(q_BHA, k_BGWA.shape[1]),
    k_BGWA,
    preferred_element_type=jnp.float32,
  ).reshape(batch, heads, -1)
  score = jnp.where(sees_BW[:, None], score * scale, -jnp.inf)
  largest = jnp.max(score, axis=-1, keepdims=True)
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight = (weight / jnp.where(total > 0, total, 1.0)).astype(v_BGWE.dtype)
  out = jnp.einsum('bgmw,bgwe->bgme', shared(weight, v_BGWE.shape[1]), v_BGWE)
  return out.reshape(batch, heads, -1)
