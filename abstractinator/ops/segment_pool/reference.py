"""Dense pooling in float32: slow, plain, the oracle of the others."""

import jax.numpy as jnp

from abstractinator.types import Array


def segment_pool(
  score_BSH: Array, value_BSHE: Array, index_BS: Array, *, num_slots: int
) -> Array:
  """See `api.segment_pool`. Builds [B, H, P, S]."""
  score, value = score_BSH.astype(jnp.float32), value_BSHE.astype(jnp.float32)
  member_BPS = index_BS[:, None, :] == jnp.arange(num_slots)[None, :, None]
  score_BHPS = jnp.where(
    member_BPS[:, None], jnp.moveaxis(score, 2, 1)[:, :, None], -jnp.inf
  )
  largest = jnp.max(score_BHPS, axis=-1, keepdims=True)
  weight = jnp.exp(score_BHPS - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum('bhps,bshe->bphe', weight, value, precision='highest')
  return out.astype(value_BSHE.dtype)
