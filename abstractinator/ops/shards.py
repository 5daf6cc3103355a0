"""Runs an op on each device's own rows and heads of the ambient mesh.

The partitioner of XLA cannot look into a kernel: without this it would gather
the whole batch on every device.
"""

import math
from collections.abc import Callable, Sequence

import jax
from jax import lax
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
      split.
    out_dims: Of what the function returns, likewise; of size 1 where all of
      the arguments' are.

  Returns:
    What the function returns, of the whole.
  """
  rows, heads = (
    {
      arg.shape[i]
      for arg, letters in zip(args, dims, strict=True)
      for i, name in enumerate(letters)
      if name == letter
    }
    for letter in 'BH'
  )
  axes = {
    'B': dividing_axes(BATCH_AXES, rows),
    'H': dividing_axes((HEAD_AXIS,), heads - {1}),
  }
  if not any(axes.values()):
    return function(*args)

  def spec(letters, shape=None):
    names = [axes.get(letter) or None for letter in letters]
    if shape is not None:
      is_shared = [
        letter == 'H' and size == 1
        for letter, size in zip(letters, shape, strict=True)
      ]
      names = [
        None if shared else name
        for name, shared in zip(names, is_shared, strict=True)
      ]
    return P(*names)

  return jax.shard_map(
    function,
    in_specs=tuple(
      spec(letters, arg.shape) for arg, letters in zip(args, dims, strict=True)
    ),
    out_specs=spec(out_dims)
    if isinstance(out_dims, str)
    else tuple(map(spec, out_dims)),
    # Kernels say nothing of which axes their results vary over.
    check_vma=False,
  )(*args)


def by_rows(x: Array) -> Array:
  """Keeps an array split by its rows over the batch axes, and by nothing else.

  For the states between layers, and what is put together of two. Left to itself
  the partitioner of XLA may split their width as the weights are, and then move
  parts about, slowly; on a mesh with all of its axes jax 0.10.2 and 0.11.2 even
  add parts that do not belong together.

  Args:
    x: [B, ...].

  Returns:
    The same; without a mesh, or if rows do not divide, nothing is said.
  """
  axes = dividing_axes(BATCH_AXES, [x.shape[0]])
  return lax.with_sharding_constraint(x, P(axes)) if axes else x


def num_row_shards(batch: int) -> int:
  """How many parts the devices of the ambient mesh split so many rows into."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[name] for name in dividing_axes(BATCH_AXES, [batch]))


def dividing_axes(
  names: Sequence[str], sizes: Sequence[int] | set[int]
) -> tuple[str, ...]:
  """Which axes of the ambient mesh can split a dimension.

  Args:
    names: Axes to split it over, together.
    sizes: Of the dimension, in each array that has it.

  Returns:
    Those of the names that are axes of several devices and not split already;
    none if together they do not divide every size, or there is no size.
  """
  mesh = jax.sharding.get_abstract_mesh()
  free = {
    name: size
    for name, size, kind in zip(
      mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True
    )
    if name in names and size > 1 and kind != AxisType.Manual
  }
  if not sizes or any(size % math.prod(free.values()) for size in sizes):
    return ()
  return tuple(name for name in names if name in free)
