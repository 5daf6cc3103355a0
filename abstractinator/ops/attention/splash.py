"""Attention by the splash kernels that come with JAX, for TPU.

A peer of our own: heads are transposed to the front, and a window is a mask.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from abstractinator.types import Array

_LANES, _BLOCK = 128, 512


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  interpret: bool = False,
) -> Array:
  """See `api.attention`. What heads share is copied to each.

  `interpret` is that of the kernels.
  """
  size, heads = q_BSHA.shape[1:3]
  block = min(_BLOCK, -(-size // _LANES) * _LANES)
  whole = -(-size // block) * block

  def heads_first(x):
    x = jnp.broadcast_to(x, (*x.shape[:2], heads, x.shape[3]))
    x = jnp.pad(x, ((0, 0), (0, whole - size), (0, 0), (0, 0)))
    return x.swapaxes(1, 2)

  if window is None:
    mask = splash_attention.CausalMask((whole, whole))
  else:
    mask = splash_attention.LocalMask((whole, whole), (window, 0), 0)
  kernel = splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([mask] * heads),
    block_sizes=splash_attention.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  group = jnp.pad(group_BS, ((0, 0), (0, whole - size)), constant_values=-1)
  # It scales nothing itself.
  q = (q_BSHA.astype(jnp.float32) * scale).astype(q_BSHA.dtype)
  out = jax.vmap(kernel)(
    heads_first(q),
    heads_first(k_BSGA),
    heads_first(v_BSGE),
    splash_attention.SegmentIds(group, group),
  )
  out = out.swapaxes(1, 2)[:, :size]
  return jnp.where((group_BS >= 0)[:, :, None, None], out, 0)
