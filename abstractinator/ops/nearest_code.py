"""Search for the nearest codebook entry of each vector."""

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from abstractinator.ops.shards import BATCH_AXES, HEAD_AXIS, dividing_axes
from abstractinator.ops.support import Implementation, supported
from abstractinator.types import Array

# Vectors and entries of a tile, together 16 MiB of distances.
TILE_VECTORS, TILE_ENTRIES = 1024, 4096


def nearest_code(
  x_NC: Array,
  codebook_KC: Array,
  *,
  implementation: str,
  forbidden: tuple[int, ...] = (),
) -> Array:
  """Finds the codebook entry at the smallest Euclidean distance.

  Args:
    x_NC: Vectors, [N, C] of any float type.
    codebook_KC: Entries, [K, C] float32.
    implementation: Key of `IMPLEMENTATIONS`.
    forbidden: Entries that are never found; at least one is left.

  Returns:
    [N] int32 in 0..K-1, the lowest among equally near entries. Distances are in
    float32.

  Raises:
    ValueError: If the implementation is unknown.
  """
  chex.assert_rank([x_NC, codebook_KC], 2)
  chex.assert_equal_shape_suffix([x_NC, codebook_KC], 1)
  search = supported('nearest_code', IMPLEMENTATIONS, implementation)
  return search(x_NC, codebook_KC, forbidden)


def _dense(
  x_NC: Array, codebook_KC: Array, forbidden: tuple[int, ...]
) -> Array:
  """Implements `nearest_code` densely, the oracle of the tests."""
  difference = x_NC.astype(jnp.float32)[:, None] - codebook_KC[None]
  distance_NK = jnp.sum(jnp.square(difference), axis=-1)
  is_forbidden_K = jnp.isin(jnp.arange(len(codebook_KC)), jnp.array(forbidden))
  distance_NK = jnp.where(is_forbidden_K, jnp.inf, distance_NK)
  return jnp.argmin(distance_NK, axis=-1).astype(jnp.int32)


def _tiled(
  x_NC: Array, codebook_KC: Array, forbidden: tuple[int, ...]
) -> Array:
  """Implements `nearest_code` by products, one tile of distances at a time.

  Under a mesh, vectors are split over the axes of the batch and entries over
  'tensor' if they divide; then the nearest entry is picked among those that the
  devices found. Every distance is the same sum on any device, and so the result
  does not depend on the mesh.
  """
  # |x|^2 is the same for every entry and left out.
  norm_K = jnp.sum(jnp.square(codebook_KC), axis=-1)
  norm_K = norm_K.at[jnp.asarray(forbidden, jnp.int32)].set(jnp.inf)
  vectors = dividing_axes(BATCH_AXES, [x_NC.shape[0]])
  entries = dividing_axes((HEAD_AXIS,), [codebook_KC.shape[0]])
  if not vectors and not entries:
    return _search(x_NC, codebook_KC, norm_K)[1]

  def search_part(x_NC: Array, codebook_KC: Array, norm_K: Array) -> Array:
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


def _search(
  x_NC: Array, codebook_KC: Array, norm_K: Array
) -> tuple[Array, Array]:
  """Returns distances less |x|^2, [N], and codes, [N], of nearest entries."""
  count, width = x_NC.shape
  if count <= TILE_VECTORS:
    return _search_tile(x_NC, codebook_KC, norm_K)
  tiles = -(-count // TILE_VECTORS)
  x_NC = jnp.pad(x_NC, ((0, tiles * TILE_VECTORS - count), (0, 0)))
  distance, code = lax.map(
    lambda x: _search_tile(x, codebook_KC, norm_K),
    x_NC.reshape(tiles, TILE_VECTORS, width),
  )
  return distance.reshape(-1)[:count], code.reshape(-1)[:count]


def _search_tile(
  x_NC: Array, codebook_KC: Array, norm_K: Array
) -> tuple[Array, Array]:
  """Returns the same as `_search` for one tile of vectors."""
  x_NC = x_NC.astype(jnp.float32)

  def nearest(codebook_KC: Array, norm_K: Array) -> tuple[Array, Array]:
    product = jnp.einsum('nc,kc->nk', x_NC, codebook_KC, precision='highest')
    distance_NK = norm_K - 2 * product
    code_N = jnp.argmin(distance_NK, axis=-1).astype(jnp.int32)
    return jnp.min(distance_NK, axis=-1), code_N

  size, width = codebook_KC.shape
  if size <= TILE_ENTRIES:
    return nearest(codebook_KC, norm_K)
  tiles = -(-size // TILE_ENTRIES)
  pad = tiles * TILE_ENTRIES - size
  codebook = jnp.pad(codebook_KC, ((0, pad), (0, 0)))
  norm = jnp.pad(norm_K, (0, pad), constant_values=jnp.inf)

  def closer(
    best: tuple[Array, Array], tile: tuple[Array, Array, Array]
  ) -> tuple[tuple[Array, Array], None]:
    start, codebook_KC, norm_K = tile
    distance_N, code_N = nearest(codebook_KC, norm_K)
    # Of equally near entries the earlier one is kept.
    is_closer_N = distance_N < best[0]
    return (
      jnp.where(is_closer_N, distance_N, best[0]),
      jnp.where(is_closer_N, start + code_N, best[1]),
    ), None

  start = (jnp.full(len(x_NC), jnp.inf), jnp.zeros(len(x_NC), jnp.int32))
  begin = jnp.arange(tiles, dtype=jnp.int32) * TILE_ENTRIES
  codebooks = codebook.reshape(tiles, TILE_ENTRIES, width)
  norms = norm.reshape(tiles, TILE_ENTRIES)
  return lax.scan(closer, start, (begin, codebooks, norms))[0]


IMPLEMENTATIONS = {
  'reference': Implementation(
    _dense,
    cost='N K C, N K memory',
    note='dense differences, float32: the oracle of the tests',
  ),
  'xla': Implementation(
    _tiled,
    cost='N K C, a tile of 1024 x 4096 distances',
    note='products in float32; entries are split over the mesh axis `tensor`',
  ),
}
