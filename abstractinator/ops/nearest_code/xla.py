"""Code search by matrix products, a tile of vectors at a time."""

import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array

_TILE = 4096


def nearest_code(
  x_NC: Array, codebook_KC: Array, forbidden: tuple[int, ...]
) -> Array:
  """See `api.nearest_code`. Holds at most a [4096, K] tile of distances."""
  # |x|^2 is the same for every entry and left out.
  norm_K = jnp.sum(jnp.square(codebook_KC), axis=-1)
  norm_K = norm_K.at[jnp.asarray(forbidden, jnp.int32)].set(jnp.inf)

  def search(x_NC):
    product = jnp.einsum(
      'nc,kc->nk', x_NC.astype(jnp.float32), codebook_KC, precision='highest'
    )
    return jnp.argmin(norm_K - 2 * product, axis=-1).astype(jnp.int32)

  count, width = x_NC.shape
  if count <= _TILE:
    return search(x_NC)
  tiles = -(-count // _TILE)
  x_NC = jnp.pad(x_NC, ((0, tiles * _TILE - count), (0, 0)))
  return lax.map(search, x_NC.reshape(tiles, _TILE, width)).reshape(-1)[:count]
