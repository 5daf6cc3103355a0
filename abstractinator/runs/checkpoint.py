"""Checkpoints of a run: training state, data position, config, checksums.

A checkpoint is a directory WORKDIR/checkpoints/STEP that appears whole or not
at all. It is written in the background while training continues. Orbax does not
notice bytes that change on the disk, so each array is stored with a checksum,
which is compared when the array is read. Nothing falls back to an older
checkpoint by itself: the error for a damaged one lists the others.
"""

import dataclasses
import functools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from abstractinator.types import Array, PyTree

_JSON_ITEMS = ('data', 'config', 'checksums')
_POLICIES = ocp.checkpoint_managers


def by_path(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves of a tree by their '/'-joined paths."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }


def checksums(tree: PyTree) -> dict[str, int]:
  """Returns a checksum of each array of a tree, by path.

  A checksum is the sum of the bits of an array, taken as unsigned integers,
  modulo 2**32. It is exact in any order of summation, and so does not depend on
  the mesh.
  """
  leaves = by_path(tree)
  on_host = all(map(_is_in_host_memory, leaves.values()))
  return (host_checksums if on_host else device_checksums)(leaves)


def host_checksums(leaves: Mapping[str, Any]) -> dict[str, int]:
  """Returns checksums of arrays that lie in the memory of this process.

  Compiling `device_checksums` would take longer than reading a model.
  """

  def checksum(leaf: Any) -> int:
    x = np.ascontiguousarray(leaf).reshape(-1)
    return int(np.sum(x.view(f'uint{_width(x)}'), dtype=np.uint32))

  return {name: checksum(leaf) for name, leaf in leaves.items()}


def device_checksums(leaves: Mapping[str, Array]) -> dict[str, int]:
  """Returns checksums of arrays, computed on the devices that hold them."""
  sums = jax.device_get(_device_checksums(dict(leaves)))
  return {name: int(value) for name, value in sums.items()}


@jax.jit
def _device_checksums(leaves: dict[str, Array]) -> dict[str, Array]:
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


@dataclasses.dataclass(frozen=True)
class Restored:
  """Contents of a checkpoint.

  Attributes:
    state: The training state, a tree of jax arrays.
    data_position: JSON values that say where the data pipeline stands.
    config: JSON values of the run's config.
    step: Step of the checkpoint.
  """

  state: PyTree
  data_position: dict[str, Any]
  config: dict[str, Any]
  step: int


class Checkpointer:
  """Writer of the checkpoints of a run. Every process must take part."""

  def __init__(
    self, workdir: str, max_to_keep: int, best_metric: str | None = None
  ) -> None:
    """Opens the checkpoints of a run, creating the directory if need be.

    Half-written checkpoints, which a killed run leaves, are removed.

    Args:
      workdir: Directory of the run.
      max_to_keep: Number of latest checkpoints to keep.
      best_metric: Name of a metric, the lower the better; the checkpoint with
        the lowest value is kept as well. None keeps the latest ones only.

    Raises:
      ValueError: If the stored metrics of a checkpoint are damaged.
    """
    self.directory = _directory(workdir)
    self._best_metric = best_metric
    policies = [_POLICIES.LatestN(max_to_keep)]
    score = None
    if best_metric is not None:
      score = functools.partial(_value_or_inf, name=best_metric)
      policies.append(
        _POLICIES.BestN(
          get_metric_fn=score,
          reverse=True,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = _open_manager(
      self.directory,
      cleanup_tmp_directories=True,
      # Orbax writes metrics down only if it gets this function.
      best_fn=score,
      best_mode='min',
      preservation_policy=_POLICIES.AnyPreservationPolicy(policies),
    )

  def save(
    self,
    step: int,
    state: PyTree,
    data_position: Mapping[str, Any],
    config_dict: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to write a checkpoint, after waiting for the one before.

    The state may be donated as soon as this method returns.

    Args:
      step: Number of optimizer steps done.
      state: A tree of jax arrays.
      data_position: JSON values that say where the data pipeline stands.
      config_dict: JSON values of the run's config.
      metrics: Held-out metrics of this step, of which `best_metric` is used. A
        checkpoint without metrics, or whose metric is not finite, is never the
        best.

    Raises:
      ValueError: If `step` is not later than all existing checkpoints.
    """
    latest = self._manager.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(
        f'{self.directory}: got step {step} to save, allowed: a step after the'
        f' latest checkpoint ({latest}); move later ones away to branch off'
      )
    best = {}
    if metrics is not None and self._best_metric is not None:
      value = float(metrics[self._best_metric])
      # NaN would upset the order, and JSON cannot represent it.
      best = {self._best_metric: value} if math.isfinite(value) else {}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        data=ocp.args.JsonSave(dict(data_position)),
        config=ocp.args.JsonSave(dict(config_dict)),
        checksums=ocp.args.JsonSave(checksums(state)),
      ),
      metrics=best,
      # Orbax would silently skip a save that it considers too early.
      force=True,
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: object) -> None:
    """Waits until the last checkpoint is on the disk."""
    self._manager.close()


def _value_or_inf(metrics: Mapping[str, float], *, name: str) -> float:
  return metrics.get(name, math.inf)


def latest_step(workdir: str) -> int | None:
  """Returns the step of the latest checkpoint of a run, None without one."""
  if not os.path.isdir(_directory(workdir)):
    return None
  with _open_to_read(workdir) as manager:
    return manager.latest_step()


def read_config(workdir: str, step: int | None = None) -> dict[str, Any]:
  """Returns the config in a checkpoint of a run.

  Args:
    workdir: Directory of the run.
    step: Step of the checkpoint; the latest one by default.

  Raises:
    ValueError: If there is no such checkpoint or it is damaged.
  """
  with _open_to_read(workdir) as manager:
    return _read(manager, _choose_step(manager, step), 'config').config


def restore(
  workdir: str, abstract_state: PyTree, step: int | None = None
) -> Restored:
  """Reads a checkpoint of a run.

  Args:
    workdir: Directory of the run.
    abstract_state: A tree like the state, of shapes, dtypes and shardings
      (`jax.ShapeDtypeStruct`). The mesh may differ from the one that the state
      was saved from. An array without sharding goes to the default device.
    step: Step of the checkpoint; the latest one by default.

  Returns:
    The contents of the checkpoint.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or its arrays
      differ from those of `abstract_state` in paths, shapes or dtypes.
  """
  with _open_to_read(workdir) as manager:
    step = _choose_step(manager, step)
    state = _read_state(manager, step, abstract_state)
    items = _read(manager, step, 'data', 'config')
    return Restored(state, items.data, items.config, step)


def restore_variables(
  workdir: str,
  abstract_variables: Mapping[str, PyTree],
  step: int | None = None,
  *,
  params_field: str = 'params',
  place: tuple[str, ...] = (),
) -> dict[str, PyTree]:
  """Reads the parameters and collections of a model, or of one module of it.

  Args:
    workdir: Directory of the run.
    abstract_variables: `params` and the collections of the module: shapes and
      dtypes, with or without shardings, of exactly the arrays that the
      checkpoint has of it.
    step: Step of the checkpoint; the latest one by default.
    params_field: Field of the state that `params` is read from: 'params', or
      'ema' for the moving average.
    place: Path of the module in the model; the whole model by default.

  Returns:
    The variables, filled; on the default device where no sharding is given.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or its arrays
      differ from those of `abstract_variables` in paths, shapes or dtypes.
  """
  collections = dict(abstract_variables)
  fields = {params_field: collections.pop('params')}
  # Orbax refuses to read an empty group, unless it is saved as one.
  if collections:
    fields['collections'] = collections

  def is_wanted(path: str) -> bool:
    field, *rest = path.split('/')
    # The path in `collections` begins with the name of the collection.
    below = rest[1:] if field == 'collections' else rest
    is_read = field in (params_field, 'collections')
    return is_read and tuple(below[: len(place)]) == place

  with _open_to_read(workdir) as manager:
    step = _choose_step(manager, step)
    found = _read_state(manager, step, fields, is_wanted)
  return {'params': found[params_field], **found.get('collections', {})}


def _read_state(
  manager: ocp.CheckpointManager,
  step: int,
  abstract: PyTree,
  is_wanted: Callable[[str], bool] = lambda path: True,
) -> PyTree:
  """Reads arrays of a state and compares their checksums.

  Args:
    manager: Manager of the checkpoints of the run.
    step: Step of the checkpoint.
    abstract: A tree of shapes and dtypes, with or without shardings.
    is_wanted: Tells by the '/'-joined path of an array whether it is read.
      `abstract` has exactly these arrays.

  Returns:
    The tree, filled.
  """
  path = os.path.join(manager.directory, str(step))
  try:
    metadata = manager.item_metadata(step).state
  except Exception as error:
    raise _damaged(manager, step, _first_line(error)) from error
  if metadata is None:
    raise _damaged(manager, step, 'no description of its state')
  saved = by_path(metadata.tree)
  saved = {name: leaf for name, leaf in saved.items() if is_wanted(name)}
  _require_same_leaves(path, saved, by_path(abstract))
  default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or default
    ),
    abstract,
  )
  restored = _read(
    manager,
    step,
    'checksums',
    state=ocp.args.PyTreeRestore(
      item=target,
      restore_args=ocp.checkpoint_utils.construct_restore_args(target),
      partial_restore=True,
    ),
  )
  for name, checksum in checksums(restored.state).items():
    if restored.checksums.get(name) != checksum:
      raise _damaged(manager, step, f'wrong checksum of {name}')
  return restored.state


def _require_same_leaves(
  path: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Raises ValueError, naming one, if saved arrays differ from wanted ones."""
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


def _read(
  manager: ocp.CheckpointManager, step: int, *json_items: str, **items: Any
) -> Any:
  """Returns an object with the given items of a checkpoint as attributes.

  Items that are not JSON are given with their arguments of orbax. Its errors,
  which are of many types, become one ValueError.
  """
  _silence_abandoned_reads()
  for name in json_items:
    items[name] = ocp.args.JsonRestore()
  try:
    return manager.restore(step, args=ocp.args.Composite(**items))
  except jax.errors.JaxRuntimeError:
    # An error of the device, such as too little memory, not of the files.
    raise
  except Exception as error:
    raise _damaged(manager, step, _first_line(error)) from error


@functools.cache
def _silence_abandoned_reads() -> None:
  """Suppresses the tracebacks of reads that orbax abandons after a failure.

  When one read fails, orbax leaves the coroutines of the others unawaited. Each
  would print a traceback of the same failure when it is collected, before the
  error arrives here or at the end of the process.
  """
  previous = sys.unraisablehook

  def hook(unraisable: 'sys.UnraisableHookArgs') -> None:
    code = getattr(unraisable.object, 'cr_code', None)
    if code is None or '/orbax/' not in code.co_filename:
      previous(unraisable)

  sys.unraisablehook = hook


def _damaged(
  manager: ocp.CheckpointManager, step: int, detail: str
) -> ValueError:
  path = os.path.join(manager.directory, str(step))
  others = _listed(other for other in manager.all_steps() if other != step)
  return ValueError(
    f'{path}: this checkpoint is damaged ({detail}); others there:'
    f' {others or "none"}; move it away to continue from another'
  )


def _first_line(error: Exception) -> str:
  text = str(error).strip().split('\n')[0][:100]
  return f'{type(error).__name__}: {text}'


def _listed(steps: Iterable[int]) -> str:
  return ', '.join(map(str, sorted(steps)))


def _choose_step(manager: ocp.CheckpointManager, step: int | None) -> int:
  """Returns the given step, or the latest one for None.

  Raises:
    ValueError: If there is no checkpoint of this step, or none at all.
  """
  steps = manager.all_steps()
  if not steps:
    raise ValueError(
      f'{manager.directory}: no checkpoint there, allowed: a run that has'
      ' written one'
    )
  if step is None:
    return max(steps)
  if step not in steps:
    raise ValueError(
      f'{manager.directory}: got step {step}, allowed: {_listed(steps)}'
    )
  return step


def _directory(workdir: str) -> str:
  """Returns the directory of the checkpoints of a run."""
  return os.path.join(os.path.abspath(workdir), 'checkpoints')


def _open_to_read(workdir: str) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run without changing anything on the disk."""
  if not os.path.isdir(workdir):
    raise ValueError(
      f'workdir: got {workdir!r}, allowed: the directory of a run'
    )
  return _open_manager(_directory(workdir), create=False)


def _open_manager(directory: str, **options: Any) -> ocp.CheckpointManager:
  """Opens a directory of checkpoints with `CheckpointManagerOptions`."""
  # absl calls a filter once however often it is added.
  logging.getLogger('absl').addFilter(_is_wanted_message)
  handlers: dict[str, Any] = {
    n: ocp.JsonCheckpointHandler() for n in _JSON_ITEMS
  }
  handlers['state'] = ocp.PyTreeCheckpointHandler()
  try:
    return ocp.CheckpointManager(
      directory,
      item_handlers=handlers,
      options=ocp.CheckpointManagerOptions(**options),
    )
  except json.JSONDecodeError as error:
    raise ValueError(
      f'{directory}/*/metrics: one of these is damaged ({error})'
    ) from error


def _is_wanted_message(record: logging.LogRecord) -> bool:
  """Rejects the messages of orbax below warnings, dozens of lines a save."""
  return record.levelno > logging.INFO or '/orbax/' not in record.pathname
