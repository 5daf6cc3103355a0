"""Attention in blocks: each block of queries meets only the keys it can see.

In shapes, n is the number of blocks of ids of a row, and X any width.
"""

import jax.numpy as jnp
from jax import lax

from abstractinator.ops.attention import xla_full
from abstractinator.ops.attention.shapes import in_blocks
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
  """Implements `api.attention` by dense attention of blocks of ids.

  Time and memory grow as S x (window + block). Without a window, `xla_full` is
  called. The softmax is written out, as `jax.nn.softmax` divides each weight by
  the sum of weights: dividing after the sum over keys touches E numbers per
  query in place of one per key.
  """
  if window is None:
    return xla_full.attention(
      q_BSHA, k_BSGA, v_BSGE, group_BS=group_BS, scale=scale
    )
  batch, size, heads, _ = q_BSHA.shape
  block = min(_block_size(window), size)
  q = in_blocks(q_BSHA, block)
  num_blocks = q.shape[1]
  reach = min(-(-window // block), num_blocks - 1)

  def with_previous(x, fill=0):
    """[B, n, block, ...] -> [B, n, (reach + 1) * block, ...]."""
    pad = ((0, 0), (reach, 0)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, pad, constant_values=fill)
    shifted = [x[:, i : i + num_blocks] for i in range(reach + 1)]
    return jnp.concatenate(shifted, axis=2)

  k, key_head = _per_head(k_BSGA)
  v, value_head = _per_head(v_BSGE)
  k, v = (with_previous(in_blocks(x, block)) for x in (k, v))
  query_group = in_blocks(group_BS, block, -1)
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
  total = jnp.moveaxis(jnp.where(total > 0, total, 1.0), 2, 3)[..., None]
  out = (out / total).reshape(batch, num_blocks * block, heads, -1)
  return out[:, :size].astype(v_BSGE.dtype)


def _per_head(x_BSGX: Array) -> tuple[Array, str]:
  """Returns [B, S, X] and '' for one shared head, else the array and 'h'.

  The second is the einsum letter of the head axis.
  """
  return (x_BSGX[:, :, 0], '') if x_BSGX.shape[2] == 1 else (x_BSGX, 'h')


def _block_size(window: int) -> int:
  """Returns a power of two near the window: two blocks of keys cover it."""
  return min(max(32, 1 << (window - 1).bit_length()), 128)
