"""Runs an op on each device's own rows and heads of the ambient mesh.

The partitioner of XLA cannot look into a kernel: without this it would gather
the whole batch on every device.
"""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from abstractinator.types import Array

BATCH_AXES = ('data', 'fsdp')
HEAD_AXIS = 'tensor'


def over_shards(
  function: Callable[..., Array | tuple[Array, ...]],
  args: Sequence[Array],
  dims: Sequence[str],
  out_dims: str | tuple[str, ...],
) -> Array | tuple[Array, ...]:
  """Calls a function with each device's part of the arrays.

  Rows are split over the axes 'data' and 'fsdp' of the mesh set by
  `jax.set_mesh`, heads over 'tensor'. What does not divide is not split: every
  device computes all of it. Without a mesh, with one device, or where those
  axes are already split by a `shard_map` around, it is a plain call.

  Args:
    function: Of arrays, to one or several; rows, and heads, must not depend on
      each other.
    args: Arrays.
    dims: Of each array, one letter a dimension: 'B' for rows, 'H' for heads,
      '.' for others. A dimension 'H' of size 1 is shared by all heads, and not
      split; all others must be of one size, or multiples of it.
    out_dims: Of what the function returns, likewise.

  Returns:
    What the function returns, of the whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  free = {
    name: size
    for name, size, kind in zip(
      mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True
    )
    if size > 1 and kind != AxisType.Manual
  }
  axes = {
    'B': _dividing(
      [name for name in BATCH_AXES if name in free],
      free,
      _sizes(args, dims, 'B'),
    ),
    'H': _dividing(
      [name for name in (HEAD_AXIS,) if name in free],
      free,
      [size for size in _sizes(args, dims, 'H') if size > 1],
    ),
  }
  if not any(axes.values()):
    return function(*args)

  def spec(letters, shape=None):
    return P(
      *(
        axes.get(letter) or None
        if shape is None or letter == 'B' or shape[i] > 1
        else None
        for i, letter in enumerate(letters)
      )
    )

  return jax.shard_map(
    function,
    in_specs=tuple(
      spec(letters, arg.shape) for arg, letters in zip(args, dims, strict=True)
    ),
    out_specs=spec(out_dims)
    if isinstance(out_dims, str)
    else tuple(spec(letters) for letters in out_dims),
    # Kernels say nothing of which axes their results vary over.
    check_vma=False,
  )(*args)


def _sizes(args, dims, letter) -> list[int]:
  return [
    arg.shape[i]
    for arg, letters in zip(args, dims, strict=True)
    for i, name in enumerate(letters)
    if name == letter
  ]


def _dividing(names, mesh_sizes, sizes) -> tuple[str, ...]:
  """The axes, if together they divide every size, else none."""
  count = math.prod(mesh_sizes[name] for name in names)
  if not sizes or any(size % count for size in sizes):
    return ()
  return tuple(names)
