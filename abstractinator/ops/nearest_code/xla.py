"""Code search by matrix products, a tile of distances at a time."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from abstractinator.ops.shards import BATCH_AXES, HEAD_AXIS, dividing_axes
from abstractinator.types import Array

# Vectors, and entries, of a tile: 16 MiB of distances.
_VECTORS, _ENTRIES = 1024, 4096


def nearest_code(
  x_NC: Array, codebook_KC: Array, forbidden: tuple[int, ...]
) -> Array:
  """See `api.nearest_code`. Holds a [1024, 4096] tile of distances at a time.

  Under a mesh, vectors are split over the axes of the batch and entries over
  'tensor', where they divide; the nearest of all is then found among those of
  the devices. Distances are the same sums wherever they are taken, so that the
  result is, too.
  """
  # |x|^2 is the same for every entry and left out.
  norm_K = jnp.sum(jnp.square(codebook_KC), axis=-1)
  norm_K = norm_K.at[jnp.asarray(forbidden, jnp.int32)].set(jnp.inf)
  vectors = dividing_axes(BATCH_AXES, [x_NC.shape[0]])
  entries = dividing_axes((HEAD_AXIS,), [codebook_KC.shape[0]])
  if not vectors and not entries:
    return _search(x_NC, codebook_KC, norm_K)[1]

  def search_part(x_NC, codebook_KC, norm_K):
    distance_N, code_N = _search(x_NC, codebook_KC, norm_K)
    if not entries:
      return code_N
    code_N += lax.axis_index(HEAD_AXIS) * codebook_KC.shape[0]
    distance = lax.all_gather(distance_N, HEAD_AXIS)
    # Devices are in the order of their entries, and the first wins.
    winner_N = jnp.argmin(distance, axis=0)
    code = lax.all_gather(code_N, HEAD_AXIS)
    return jnp.take_along_axis(code, winner_N[None], axis=0)[0]

  return jax.shard_map(
    search_part,
    in_specs=(P(vectors or None), P(entries or None), P(entries or None)),
    out_specs=P(vectors or None),
    check_vma=False,
  )(x_NC, codebook_KC, norm_K)


def _search(x_NC, codebook_KC, norm_K):
  """Distances [N] but for |x|^2, and codes [N], of the nearest."""
  count, width = x_NC.shape
  if count <= _VECTORS:
    return _search_tile(x_NC, codebook_KC, norm_K)
  tiles = -(-count // _VECTORS)
  x_NC = jnp.pad(x_NC, ((0, tiles * _VECTORS - count), (0, 0)))
  found = lax.map(
    lambda x: _search_tile(x, codebook_KC, norm_K),
    x_NC.reshape(tiles, _VECTORS, width),
  )
  return tuple(x.reshape(-1)[:count] for x in found)


def _search_tile(x_NC, codebook_KC, norm_K):
  """Likewise of at most 1024 vectors, over tiles of entries."""
  x_NC = x_NC.astype(jnp.float32)

  def nearest(codebook_KC, norm_K):
    product = jnp.einsum('nc,kc->nk', x_NC, codebook_KC, precision='highest')
    distance_NK = norm_K - 2 * product
    code_N = jnp.argmin(distance_NK, axis=-1).astype(jnp.int32)
    return jnp.min(distance_NK, axis=-1), code_N

  size, width = codebook_KC.shape
  if size <= _ENTRIES:
    return nearest(codebook_KC, norm_K)
  tiles = -(-size // _ENTRIES)
  pad = tiles * _ENTRIES - size
  codebook = jnp.pad(codebook_KC, ((0, pad), (0, 0)))
  norm = jnp.pad(norm_K, (0, pad), constant_values=jnp.inf)

  def closer(best, tile):
    start, codebook_KC, norm_K = tile
    distance_N, code_N = nearest(codebook_KC, norm_K)
    # Equals lose to what came before.
    is_closer_N = distance_N < best[0]
    return (
      jnp.where(is_closer_N, distance_N, best[0]),
      jnp.where(is_closer_N, start + code_N, best[1]),
    ), None

  start = (
    jnp.full(len(x_NC), jnp.inf),
    jnp.zeros(len(x_NC), jnp.int32),
  )
  tiles = (
    jnp.arange(tiles, dtype=jnp.int32) * _ENTRIES,
    codebook.reshape(tiles, _ENTRIES, width),
    norm.reshape(tiles, _ENTRIES),
  )
  return lax.scan(closer, start, tiles)[0]
