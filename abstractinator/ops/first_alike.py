"""Finds what of a row has been there before."""

import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array


def first_alike(keys_BPK: Array) -> Array:
  """The first place of each row with the same keys as each place.

  Args:
    keys_BPK: [B, P, K] integers.

  Returns:
    [B, P] int32, at most the place itself. By sorting, in P log P.
  """
  batch, places, width = keys_BPK.shape
  place_P = jnp.arange(places, dtype=jnp.int32)
  place_BP = jnp.broadcast_to(place_P, (batch, places))
  operands = [*jnp.moveaxis(keys_BPK, -1, 0), place_BP]
  # The place is a key too: of those that are alike the first comes first.
  *sorted_keys, order_BP = lax.sort(operands, num_keys=width + 1)
  differs_BP = jnp.zeros((batch, places), bool).at[:, 0].set(True)
  for key_BP in sorted_keys:
    differs_BP = differs_BP.at[:, 1:].max(key_BP[:, 1:] != key_BP[:, :-1])
  begin_BP = lax.cummax(jnp.where(differs_BP, place_P, 0), axis=1)
  first_BP = jnp.take_along_axis(order_BP, begin_BP, axis=1)
  row_B1 = jnp.arange(batch)[:, None]
  return (
    jnp.zeros_like(place_BP)
    .at[row_B1, order_BP]
    .set(first_BP, unique_indices=True)
  )
