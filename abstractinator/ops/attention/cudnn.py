"""Attention by cuDNN, through `jax.nn`, for GPU.

cuDNN knows windows and lengths of rows, but no documents. So that scores of
ids of two groups are far below those of one, queries and keys are widened by
a code of their group: 16 signs, whose product is 16 for equal groups and 14 or
less for others, times what makes a difference of two worth `_GAP` nats.
"""

import jax
import jax.numpy as jnp

from abstractinator.types import Array

_BITS, _MULTIPLE, _MAX_WIDTH = 16, 8, 256
# Between groups; e^-64 is less than any rounding.
_GAP = 64.0


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  implementation: str = 'cudnn',
) -> Array:
  """See `api.attention`. Groups are told apart up to 65,535; scores by `_GAP`.

  Scores of other groups that are more than `_GAP` nats above those of the own
  would be seen. What heads share is copied to each, and the narrower of keys
  and values is padded to the wider, rows to an even number of ids.

  Raises:
    NotImplementedError: If heads and the code are wider than 256.
  """
  length, heads = q_BSHA.shape[1:3]
  # jax refuses a backward pass over rows of odd length. What is last is seen by
  # nothing before it.
  q_BSHA, k_BSGA, v_BSGE = (
    jnp.pad(x, ((0, 0), (0, length % 2), (0, 0), (0, 0)))
    for x in (q_BSHA, k_BSGA, v_BSGE)
  )
  group_BS = jnp.pad(group_BS, ((0, 0), (0, length % 2)), constant_values=-1)
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
    x = jnp.broadcast_to(x, (*x.shape[:2], heads, x.shape[3]))
    codes = [jnp.broadcast_to(c, (*x.shape[:3], _BITS)) for c in codes]
    x = jnp.concatenate([x, *codes], axis=-1)
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
  return jnp.where((group_BS >= 0)[:, :, None, None], out, 0)[:, :length]
