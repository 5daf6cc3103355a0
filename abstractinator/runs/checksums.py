"""Names, shapes and checksums of arrays, and checksums of JSON values."""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.types import Array, PyTree


def by_path(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves of a tree by their '/'-joined paths."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }


def require_same_leaves(
  path: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Raises ValueError, naming one, if saved arrays differ from wanted ones.

  Args:
    path: Path of the arrays, for the message.
    saved: Arrays that are there, with shapes and dtypes, by name.
    wanted: Arrays that should be there.
  """
  for name in {**wanted, **saved}:
    if name not in saved:
      raise ValueError(f'{path}: {name} is not in the checkpoint')
    if name not in wanted:
      raise ValueError(f'{path}: {name} is in the checkpoint but not wanted')
    got, want = (
      f'{x.dtype}{list(x.shape)}' for x in (saved[name], wanted[name])
    )
    if got != want:
      raise ValueError(f'{path}: {name} is {got} in the checkpoint, not {want}')


def of_json(values: Any) -> int:
  """Returns a CRC-32 of JSON values, whatever the order of their keys."""
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def sealed(record: dict[str, Any]) -> dict[str, Any]:
  """Returns JSON values with a checksum of themselves."""
  return record | {'itself': of_json(record)}


def is_sealed(record: Any) -> bool:
  """Tells whether JSON values are what `sealed` returned."""
  values = dict(record) if isinstance(record, dict) else {}
  return values.pop('itself', None) == of_json(values)


def of_arrays(tree: PyTree) -> dict[str, int]:
  """Returns a checksum of each array of a tree, by path.

  A checksum is the sum of the bits of an array, taken as unsigned integers,
  modulo 2**32. It is exact in any order of summation, and so does not depend on
  the mesh.
  """
  leaves = by_path(tree)
  in_host_memory = all(map(_is_in_host_memory, leaves.values()))
  return (on_host_memory if in_host_memory else on_devices)(leaves)


def on_host_memory(leaves: Mapping[str, Any]) -> dict[str, int]:
  """Returns checksums of arrays that lie in the memory of this process.

  Compiling `on_devices` would take longer than reading a model.
  """

  def checksum(leaf: Any) -> int:
    x = np.ascontiguousarray(leaf).reshape(-1)
    return int(np.sum(x.view(f'uint{_width(x)}'), dtype=np.uint32))

  return {name: checksum(leaf) for name, leaf in leaves.items()}


def on_devices(leaves: Mapping[str, Array]) -> dict[str, int]:
  """Returns checksums of arrays, computed on the devices that hold them."""
  sums = jax.device_get(_on_devices(dict(leaves)))
  return {name: int(value) for name, value in sums.items()}


@jax.jit
def _on_devices(leaves: dict[str, Array]) -> dict[str, Array]:
  def checksum(x: Array) -> Array:
    if x.dtype == jnp.bool_:
      x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, f'uint{_width(x)}')
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

  return jax.tree.map(checksum, leaves)


def _width(x: Array | np.ndarray) -> int:
  """Returns the bits of the unsigned integers that an array is summed as."""
  return min(8 * x.dtype.itemsize, 32)


def _is_in_host_memory(x: Any) -> bool:
  """Tells whether this process can read all of an array where it lies."""
  if not isinstance(x, jax.Array):
    return False
  devices: Iterable[jax.Device] = x.sharding.device_set
  return x.is_fully_addressable and all(d.platform == 'cpu' for d in devices)
