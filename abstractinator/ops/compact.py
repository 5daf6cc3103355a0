"""Gaps taken out of rows."""

import jax.numpy as jnp

from abstractinator.types import Array


def compact(ids_BN: Array, is_kept_BN: Array) -> tuple[Array, Array]:
  """Moves what is kept to the front, in order.

  Args:
    ids_BN: [B, N] int32.
    is_kept_BN: [B, N] bool.

  Returns:
    [B, N] int32, 0 behind what is kept, and [B] int32, how many are.
  """
  size = ids_BN.shape[1]
  at_BN = jnp.cumsum(is_kept_BN, axis=1, dtype=jnp.int32) - 1
  at_BN = jnp.where(is_kept_BN, at_BN, size)
  row_B1 = jnp.arange(ids_BN.shape[0])[:, None]
  packed_BN = jnp.zeros_like(ids_BN).at[row_B1, at_BN].set(ids_BN, mode='drop')
  return packed_BN, jnp.sum(is_kept_BN, axis=1, dtype=jnp.int32)
