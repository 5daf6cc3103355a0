"""Ops over the rows and heads that each device of the ambient mesh holds.

The ambient mesh is the one set by `jax.set_mesh`. The partitioner of XLA cannot
look into a kernel: left alone, it would gather the whole batch on every device.
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
  function: Callable[..., Array],
  args: Sequence[Array],
  dims: Sequence[str],
  out_dims: str,
) -> Array:
  """Calls a function with each device's part of the arrays.

  Rows are split over the mesh axes 'data' and 'fsdp', heads over 'tensor'. Rows
  or heads that do not divide are not split: every device computes all of them.
  Without a mesh, with one device, or inside a `shard_map` over those axes, it
  is a plain call.

  Args:
    function: Function from arrays to one. Rows must not depend on each other,
      nor heads.
    args: Arrays that the function takes.
    dims: Letters for the dimensions of each array: 'B' for rows, 'H' for heads,
      '.' for others. A dimension 'H' of size 1 is shared by all heads, and not
      split.
    out_dims: Letters for the dimensions of the result; 'H' is of size 1 if it
      is in all arguments.

  Returns:
    The result for all rows and heads.
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

  def spec(letters: str, shape: Sequence[int] | None = None) -> P:
    sizes = shape or [0] * len(letters)
    return P(
      *(
        None if letter == 'H' and size == 1 else axes.get(letter) or None
        for letter, size in zip(letters, sizes, strict=True)
      )
    )

  return jax.shard_map(
    function,
    in_specs=tuple(
      spec(letters, arg.shape) for arg, letters in zip(args, dims, strict=True)
    ),
    out_specs=spec(out_dims),
    # Kernels do not say over which axes their results vary.
    check_vma=False,
  )(*args)


def by_rows(x: Array) -> Array:
  """Keeps an array split by its rows over the batch axes, and by nothing else.

  It is for the states between layers, and for concatenated arrays. Left to
  itself the partitioner of XLA may split their width like that of the weights,
  and then move parts between devices, slowly. On a mesh with all of its axes
  jax 0.10.2 and 0.11.2 even add parts that do not belong together.

  Args:
    x: Array with rows first, [B, ...].

  Returns:
    `x`; without a mesh, or if rows do not divide, it is not constrained.
  """
  axes = dividing_axes(BATCH_AXES, [x.shape[0]])
  return lax.with_sharding_constraint(x, P(axes)) if axes else x


def num_row_shards(batch: int) -> int:
  """Returns the number of parts into which devices split `batch` rows."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[name] for name in dividing_axes(BATCH_AXES, [batch]))


def dividing_axes(
  names: Sequence[str], sizes: Sequence[int] | set[int]
) -> tuple[str, ...]:
  """Returns the axes of the ambient mesh that can split a dimension.

  Args:
    names: Names of the axes that split it together.
    sizes: Size of the dimension in each array that has it.

  Returns:
    The names that are axes of several devices and are not split already. It is
    empty if together they do not divide every size, or there is no size.
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
