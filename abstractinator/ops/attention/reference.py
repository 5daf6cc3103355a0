"""Dense attention in float32: slow, plain, the oracle of the others."""

import jax.numpy as jnp

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
  """See `api.attention`. Builds [B, H, S, S]."""
  q, k, v = (x.astype(jnp.float32) for x in (q_BSHA, k_BSGA, v_BSGE))
  heads = q.shape[2]
  k, v = (
    jnp.broadcast_to(x, (*x.shape[:2], heads, x.shape[3])) for x in (k, v)
  )
  position = jnp.arange(q.shape[1])
  distance = position[:, None] - position[None, :]
  sees_BSS = (
    (distance >= 0)
    & (distance <= (q.shape[1] if window is None else window))
    & (group_BS[:, :, None] == group_BS[:, None, :])
    & (group_BS[:, :, None] >= 0)
  )
  score = jnp.einsum('bshd,bthd->bhst', q, k, precision='highest') * scale
  score = jnp.where(sees_BSS[:, None], score, -jnp.inf)
  # A row that sees nothing has no largest score; any finite one will do.
  largest = jnp.max(score, axis=-1, keepdims=True)
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bhst,bthe->bshe', weight, v, precision='highest')
  return out.astype(v_BSGE.dtype)
