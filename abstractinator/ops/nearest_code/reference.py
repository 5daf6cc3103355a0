"""Dense search for the nearest code in float32, the oracle of the others."""

import jax.numpy as jnp

from abstractinator.types import Array


def nearest_code(
  x_NC: Array, codebook_KC: Array, forbidden: tuple[int, ...]
) -> Array:
  """Finds the nearest entries as `api.nearest_code`; builds [N, K, C]."""
  difference = x_NC.astype(jnp.float32)[:, None] - codebook_KC[None]
  distance_NK = jnp.sum(jnp.square(difference), axis=-1)
  is_forbidden_K = jnp.isin(jnp.arange(len(codebook_KC)), jnp.array(forbidden))
  distance_NK = jnp.where(is_forbidden_K, jnp.inf, distance_NK)
  return jnp.argmin(distance_NK, axis=-1).astype(jnp.int32)
