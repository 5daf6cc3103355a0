"""Dense attention in float32, slow and plain: the oracle of the tests."""

import jax
import jax.numpy as jnp

from abstractinator.ops.attention.shapes import repeat_heads
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
  """Implements `api.attention` by one [B, H, S, S] array of scores."""
  size, heads = q_BSHA.shape[1:3]
  q, k, v = (
    repeat_heads(x.astype(jnp.float32), heads) for x in (q_BSHA, k_BSGA, v_BSGE)
  )
  position = jnp.arange(size)
  distance = position[:, None] - position[None, :]
  sees_BSS = (
    (distance >= 0)
    & (distance <= (size if window is None else window))
    & (group_BS[:, :, None] == group_BS[:, None, :])
    & (group_BS[:, :, None] >= 0)
  )
  score = jnp.einsum('bshd,bthd->bhst', q, k, precision='highest') * scale
  weight = jax.nn.softmax(score, where=sees_BSS[:, None])
  out = jnp.einsum('bhst,bthe->bshe', weight, v, precision='highest')
  return out.astype(v_BSGE.dtype)
