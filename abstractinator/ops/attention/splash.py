"""Attention by the splash kernels that come with JAX, for TPU.

These stand beside `pallas_tpu` for comparison: heads are transposed to the
front of the ids, and a window is one more mask.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from abstractinator.ops.attention.shapes import pad_ids, repeat_heads
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
  """Implements `api.attention` by the splash kernels of JAX.

  Keys and values that heads share are copied to each head. `interpret` runs the
  kernels as plain operations of JAX, on any platform.
  """
  size, heads = q_BSHA.shape[1:3]
  block = min(_BLOCK, -(-size // _LANES) * _LANES)
  padded = -(-size // block) * block

  def heads_first(x):
    return pad_ids(repeat_heads(x, heads), block).swapaxes(1, 2)

  mask = (
    splash_attention.CausalMask((padded, padded))
    if window is None
    else splash_attention.LocalMask((padded, padded), (window, 0), 0)
  )
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
  group = pad_ids(group_BS, block, -1)
  # The kernel multiplies scores by no factor of its own.
  q = (q_BSHA.astype(jnp.float32) * scale).astype(q_BSHA.dtype)
  out = jax.vmap(kernel)(
    heads_first(q),
    heads_first(k_BSGA),
    heads_first(v_BSGE),
    splash_attention.SegmentIds(group, group),
  )
  out = out.swapaxes(1, 2)[:, :size]
  return jnp.where((group_BS >= 0)[:, :, None, None], out, 0)
