"""Dense pooling in float32: slow, plain, the oracle of the others."""

import jax
import jax.numpy as jnp

from abstractinator.types import Array


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  *,
  num_slots: int,
) -> Array:
  """Implements `api.segment_pool`; builds [B, P, Q, H, S].

  Slots are in 0..P-1 and do not decrease, [B, S] int32; ids for which
  `has_slot_BS` is False, [B, S] bool, weigh nothing.
  """
  score, value = score_BSQH.astype(jnp.float32), value_BSHE.astype(jnp.float32)
  member_BPS = slot_BS[:, None, :] == jnp.arange(num_slots)[None, :, None]
  member_BPS &= has_slot_BS[:, None, :]
  weight = jax.nn.softmax(
    jnp.moveaxis(score, 1, 3)[:, None], where=member_BPS[:, :, None, None]
  )
  out = jnp.einsum('bpqhs,bshe->bpqhe', weight, value, precision='highest')
  return out.astype(value_BSHE.dtype)
