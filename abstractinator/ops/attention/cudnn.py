"""Attention by cuDNN, through `jax.nn`, for GPU.

cuDNN knows windows and lengths of rows, but no groups. Queries and keys are
therefore widened by a code of their group, 16 signs: the product of two codes
is 16 for equal groups and at most 14 for different ones. The signs of queries
are multiplied such that a difference of two lowers a score by `_GAP` nats.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from abstractinator.ops.attention.shapes import pad_ids, repeat_heads
from abstractinator.types import Array

_BITS, _MULTIPLE, _MAX_WIDTH = 16, 8, 256
# Nats between scores of different groups; e^-64 is less than any rounding.
_GAP = 64.0


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> Array:
  """Implements `api.attention` by cuDNN, for up to 65,535 groups.

  An id of another group would be seen if its score were more than `_GAP` nats
  above those of the own group. Keys and values that heads share are copied to
  each head, the narrower of keys and values is padded to the wider, and rows
  are padded to an even number of ids. `implementation` is that of
  `jax.nn.dot_product_attention`: 'xla' runs on any platform.

  Raises:
    NotImplementedError: If a head with the code of its group is wider than 256.
  """
  size, heads = q_BSHA.shape[1:3]
  # jax refuses a backward pass over rows of odd length. No earlier id sees the
  # padding.
  q_BSHA, k_BSGA, v_BSGE = (pad_ids(x, 2) for x in (q_BSHA, k_BSGA, v_BSGE))
  group_BS = pad_ids(group_BS, 2, -1)
  width = max(q_BSHA.shape[3] + _BITS, v_BSGE.shape[3])
  width = -(-width // _MULTIPLE) * _MULTIPLE
  if width > _MAX_WIDTH:
    raise NotImplementedError(
      f"attention by 'cudnn': got heads {width} wide with the {_BITS} numbers"
      f' that keep groups apart, allowed: at most {_MAX_WIDTH}'
    )
  bits = (group_BS[:, :, None] + 1) >> jnp.arange(_BITS) & 1
  code = (2 * bits - 1)[:, :, None].astype(q_BSHA.dtype)

  def widened(x, *codes):
    parts = [repeat_heads(part, heads) for part in (x, *codes)]
    x = jnp.concatenate(parts, axis=-1)
    return jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[3]),))

  amplitude = jnp.asarray(_GAP / (2 * scale), q_BSHA.dtype)
  out = jax.nn.dot_product_attention(
    widened(q_BSHA, code * amplitude),
    widened(k_BSGA, code),
    widened(v_BSGE),
    scale=scale,
    is_causal=True,
    local_window_size=None if window is None else (window, 0),
    implementation=implementation,
  )[..., : v_BSGE.shape[3]]
  return jnp.where((group_BS >= 0)[:, :, None, None], out, 0)[:, :size]
