"""Checksums of the arrays of a tree, the same on any mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.types import Array, PyTree


def by_path(tree: PyTree) -> dict[str, Any]:
  """Leaves by their '/'-joined path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }


def checksums(tree: PyTree) -> dict[str, int]:
  """Checksum of every leaf, by path; the same on any mesh."""
  leaves = by_path(tree)
  if all(map(is_in_host_memory, leaves.values())):
    return {name: host_checksum(np.asarray(x)) for name, x in leaves.items()}
  sums = jax.device_get(_leaf_checksums(leaves))
  return {name: int(value) for name, value in sums.items()}


def host_checksum(x: np.ndarray) -> int:
  """That of `checksums`; to compile it takes longer than to read a model."""
  width = min(8 * x.dtype.itemsize, 32)
  bits = np.ascontiguousarray(x).reshape(-1).view(f'uint{width}')
  return int(np.sum(bits, dtype=np.uint32))


def is_in_host_memory(x: Any) -> bool:
  """Whether this process can read all of an array where it lies."""
  if not isinstance(x, jax.Array):
    return False
  is_on_cpu = all(d.platform == 'cpu' for d in x.sharding.device_set)
  return is_on_cpu and x.is_fully_addressable


@jax.jit
def _leaf_checksums(leaves: dict[str, Array]) -> dict[str, Array]:
  return jax.tree.map(_leaf_checksum, leaves)


def _leaf_checksum(x: Array) -> Array:
  """Sum of the bits of x modulo 2**32: exact, whatever the order."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  width = min(8 * x.dtype.itemsize, 32)
  bits = jax.lax.bitcast_convert_type(x, f'uint{width}')
  return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
