"""Placement of arrays: the device mesh, shardings of parameters and batches.

Parameters are sharded by rules over their paths rather than by metadata on
the modules: the moments of the optimizer end in the same names as the
parameters they belong to, so one table covers the whole training state.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from abstractinator.config import MeshConfig
from abstractinator.ops.shards import BATCH_AXES
from abstractinator.types import PyTree

# First match wins. A path is the '/'-joined names from the root of the state.
# A spec names the axes of the last dimensions; earlier ones are not sharded.
_RULES = (
  # Statistics of a whole batch: every device must hold the same ones.
  (r'^(collections/)?(vq|calibration)/', P()),
  # Heads and hidden units are split over `tensor`, the width over `fsdp`.
  (r'(^|/)qkv/kernel$', P('fsdp', None, 'tensor', None)),
  (r'(^|/)[qkv]/kernel$', P('fsdp', 'tensor', None)),
  (r'(^|/)(query_down|query_up|value_up)/kernel$', P('tensor', 'fsdp', None)),
  # The latent of multi-head latent attention is shared by all heads.
  (r'(^|/)(attention|cross)/kv/kernel$', P('fsdp', None)),
  (r'(^|/)gate_up/kernel$', P('fsdp', None, 'tensor')),
  # These have a kernel for each component of a mixture.
  (
    r'(^|/)gaussian_head/(mean|log_variance)/kernel$',
    P('fsdp', None, 'tensor'),
  ),
  (r'(^|/)(attention|cross)/out/kernel$', P('tensor', None, 'fsdp')),
  (r'(^|/)down/kernel$', P('tensor', 'fsdp')),
  (r'(^|/)kernel$', P('fsdp', 'tensor')),
  (r'(^|/)embedding$', P(None, 'fsdp')),
  (r'(^|/)(scale|log_scale|bias|query|start)$', P()),
  (r'(^|/)(step|count|threshold|ns_coeffs)$', P()),
)


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Arranges the devices in a mesh with axes data, fsdp and tensor.

  Args:
    config: Number of devices along each axis; -1 on one axis takes what is
      left.
    devices: The devices to use; all devices of the run by default.

  Returns:
    The mesh. Its axes are of type Auto: XLA propagates shardings.

  Raises:
    ValueError: If the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = dataclasses.asdict(config)
  known = math.prod(size for size in sizes.values() if size != -1)
  resolved = {
    name: len(devices) // known if size == -1 else size
    for name, size in sizes.items()
  }
  if math.prod(resolved.values()) != len(devices):
    got = ', '.join(f'mesh.{name}={size}' for name, size in sizes.items())
    raise ValueError(
      f'{got}: allowed: sizes whose product is the number of devices'
      f' ({len(devices)}), -1 on one axis for what is left'
    )
  return jax.make_mesh(
    tuple(resolved.values()),
    tuple(resolved),
    # The default is Explicit, under which Linen's Embed fails.
    axis_types=(AxisType.Auto,) * len(resolved),
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array whose leading axis is rows of a batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def state_shardings(abstract_state: PyTree, mesh: Mesh) -> PyTree:
  """Returns the sharding of every leaf of a training state.

  A mesh axis that does not divide its dimension is left out, so that any
  sizes work on any mesh (the price is memory, not correctness).

  Args:
    abstract_state: The state, or its shapes and dtypes (`jax.eval_shape`).
    mesh: Mesh with the axes data, fsdp and tensor.

  Returns:
    A tree of the same structure of NamedSharding.

  Raises:
    KeyError: If no rule covers a leaf, naming its path.
  """

  def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for pattern, spec in _RULES:
      if re.search(pattern, name):
        return NamedSharding(mesh, _fit(spec, leaf.shape, mesh.shape))
    raise KeyError(f'no sharding rule for {name}, of shape {leaf.shape}')

  return jax.tree_util.tree_map_with_path(leaf_sharding, abstract_state)


def with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
  """Returns shapes and dtypes of a tree with the shardings of its leaves."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
  )


def _fit(spec: P, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
  """Aligns `spec` with the last dimensions and drops axes that do not fit."""
  axes = (None,) * (len(shape) - len(spec)) + tuple(spec)
  axes = axes[len(axes) - len(shape) :]
  return P(
    *(
      axis if axis and size % sizes[axis] == 0 else None
      for axis, size in zip(axes, shape, strict=True)
    )
  )


def num_batch_parts(
  mesh: Mesh | AbstractMesh, batch_size: int, microbatches: int = 1
) -> int:
  """Returns into how many parts a mesh divides the rows of a batch.

  Raises:
    ValueError: If these parts have not equally many rows of each microbatch.
  """
  shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if batch_size % (shards * microbatches):
    name = 'mesh.data * mesh.fsdp' + ' * microbatches' * (microbatches > 1)
    raise ValueError(
      f'data.batch_size: got {batch_size}, allowed: a multiple of {name}'
      f' ({shards * microbatches})'
    )
  return shards


def process_shard(
  sharding: NamedSharding, global_batch: int, microbatches: int = 1
) -> tuple[int, int]:
  """Computes which rows of every batch this process has to load.

  The index is not simply that of the process: processes that differ only along
  the tensor axis need the same rows.

  Args:
    sharding: Sharding of a batch, from `batch_sharding`.
    global_batch: Rows of the batch over all processes.
    microbatches: Number of parts that a step divides the batch into; every
      device has to have the same number of rows of each.

  Returns:
    (index, count): rows index, index + count, ... of each batch are the
    process's own, as `dataset[index::count]` picks them. Processes that need
    the same rows get the same index.

  Raises:
    ValueError: If the rows do not divide evenly among devices or processes.
  """
  shards = num_batch_parts(sharding.mesh, global_batch, microbatches)
  # First rows of the blocks of each process.
  blocks: dict[int, set[int]] = {}
  places: Mapping[jax.Device, Any] = sharding.devices_indices_map(
    (global_batch,)
  )
  for device, (rows,) in places.items():
    blocks.setdefault(device.process_index, set()).add(rows.start or 0)
  groups = sorted({tuple(sorted(block)) for block in blocks.values()})
  if sum(map(len, groups)) != shards:
    raise ValueError(
      f'mesh.tensor: got {sharding.mesh.shape["tensor"]}, allowed: a size by'
      ' which processes share either all of their rows or none'
    )
  mine = tuple(sorted(blocks[jax.process_index()]))
  return groups.index(mine), len(groups)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Turns the rows that each process has loaded into arrays over the mesh.

  Args:
    batch: numpy arrays [rows of this process, ...], see `process_shard`.
    mesh: Mesh with the axes data, fsdp and tensor.

  Returns:
    jax arrays [rows of all processes, ...] with `batch_sharding`.
  """
  return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)
