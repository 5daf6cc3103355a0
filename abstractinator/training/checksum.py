"""Checksums of the arrays of a tree, the same on any mesh."""

from typing import Any

import jax
import jax.numpy as jnp

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
  sums = jax.device_get(_leaf_checksums(by_path(tree)))
  return {name: int(value) for name, value in sums.items()}


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
