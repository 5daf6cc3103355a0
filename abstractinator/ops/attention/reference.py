"""Dense attention in float32: slow, plain, the oracle of the others."""

import jax.numpy as jnp

from abstractinator.types import Array


def attention(
  q_BSHA: Array,
  k_BSHA: Array,
  v_BSHE: Array,
  *,
  group_BS: Array,
  window: int,
  scale: float,
) -> Array:
  """See `api.attention`. Builds [B, H, S, S]."""
  q, k, v = (x.astype(jnp.float32) for x in (q_BSHA, k_BSHA, v_BSHE))
  position = jnp.arange(q.shape[1])
  distance = position[:, None] - position[None, :]
  sees_BSS = (
    (distance >= 0)
    & (distance <= window)
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
  return out.astype(v_BSHE.dtype)
