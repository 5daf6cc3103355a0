"""Attention of one new id per row to the keys of a KV cache."""

import jax
import jax.numpy as jnp

from abstractinator.types import Array


def cached_attention(
  q_BHA: Array, k_BGWA: Array, v_BGWE: Array, *, sees_BW: Array, scale: float
) -> Array:
  """Computes attention of one query per row and head to the slots it sees.

  Args:
    q_BHA: [B, H, A] queries.
    k_BGWA: [B, G, W, A] keys by slot, G of H or 1.
    v_BGWE: [B, G, W, E] values by slot; G may differ from that of the keys.
    sees_BW: [B, W] bool, slots that the row's query sees.
    scale: Factor on the scores.

  Returns:
    [B, H, E] of the type of `v_BGWE`; zeros for a row that sees no slot.
    Softmax is in float32.
  """
  batch, heads, _ = q_BHA.shape

  def by_shared_head(x, g):
    """[B, H, ...] -> [B, G, H / G, ...]."""
    return x.reshape(batch, g, heads // g, -1)

  score = jnp.einsum(
    'bgmd,bgwd->bgmw',
    by_shared_head(q_BHA, k_BGWA.shape[1]),
    k_BGWA,
    preferred_element_type=jnp.float32,
  ).reshape(batch, heads, -1)
  weight = jax.nn.softmax(score * scale, where=sees_BW[:, None])
  weight = by_shared_head(weight.astype(v_BGWE.dtype), v_BGWE.shape[1])
  out = jnp.einsum('bgmw,bgwe->bgme', weight, v_BGWE)
  return out.reshape(batch, heads, -1)
