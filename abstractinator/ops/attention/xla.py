"""Attention in blocks: each block of queries meets only the keys it can see."""

import jax.numpy as jnp
from jax import lax

from abstractinator.ops.attention import xla_full
from abstractinator.types import Array


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
) -> Array:
  """See `api.attention`. Cost and memory grow as S * (window + block)."""
  if window is None:
    return xla_full.attention(
      q_BSHA, k_BSGA, v_BSGE, group_BS=group_BS, scale=scale
    )
  batch, size, heads, _ = q_BSHA.shape
  block = min(_block_size(window), size)
  num_blocks = -(-size // block)
  reach = min(-(-window // block), num_blocks - 1)

  def blocked(x, fill=0):
    pad = ((0, 0), (0, num_blocks * block - size)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, pad, constant_values=fill)
    return x.reshape(batch, num_blocks, block, *x.shape[2:])

  def with_previous(x, fill=0):
    """[B, n, block, ...] -> [B, n, (reach + 1) * block, ...]."""
    pad = ((0, 0), (reach, 0)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, pad, constant_values=fill)
    shifted = [x[:, i : i + num_blocks] for i in range(reach + 1)]
    return jnp.concatenate(shifted, axis=2)

  q = blocked(q_BSHA)
  k, key_head = _per_head(k_BSGA)
  v, value_head = _per_head(v_BSGE)
  k, v = with_previous(blocked(k)), with_previous(blocked(v))
  query_group = blocked(group_BS, -1)
  key_group = with_previous(query_group, -1)
  distance = (
    jnp.arange(block)[:, None]
    + reach * block
    - jnp.arange((reach + 1) * block)[None, :]
  )
  sees = (
    (distance >= 0)
    & (distance <= window)
    & (query_group[..., :, None] == key_group[..., None, :])
    & (query_group[..., :, None] >= 0)
  )
  score = jnp.einsum(
    f'bnqhd,bnk{key_head}d->bnhqk', q, k, preferred_element_type=jnp.float32
  )
  score = jnp.where(sees[:, :, None], score * scale, -jnp.inf)
  # Any shift leaves the softmax as it is, so none needs a gradient.
  largest = lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1)
  out = jnp.einsum(
    f'bnhqk,bnk{value_head}e->bnqhe',
    weight.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  # Dividing after the sum over keys touches E numbers a query, not its keys.
  total = jnp.moveaxis(jnp.where(total > 0, total, 1.0), 2, 3)[..., None]
  out = (out / total).reshape(batch, num_blocks * block, heads, -1)
  return out[:, :size].astype(v_BSGE.dtype)


def _per_head(x_BSGX: Array) -> tuple[Array, str]:
  """Drops an axis of one shared head, and says how products call the axis."""
  return (x_BSGX[:, :, 0], '') if x_BSGX.shape[2] == 1 else (x_BSGX, 'h')


def _block_size(window: int) -> int:
  """A power of two near the window: two blocks of keys cover it."""
  return min(max(32, 1 << (window - 1).bit_length()), 128)
