"""Checkpoints of a run: training state, data position, config, checksums.

A checkpoint is a directory WORKDIR/checkpoints/STEP that appears whole or not
at all. It is written in the background while training goes on. Orbax does not
notice bytes that change on the disk, so each leaf has a checksum of ours,
compared when it is read. Nothing falls back to another checkpoint by itself:
an error says which others there are.
"""

import dataclasses
import functools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

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


JSON_ITEMS = ('data', 'config', 'checksums')


def directory_of(workdir: str) -> str:
  """Where the checkpoints of a run lie."""
  return os.path.join(os.path.abspath(workdir), 'checkpoints')


def open_manager(directory: str, **options) -> ocp.CheckpointManager:
  """Opens a directory of checkpoints; `options` are those of orbax."""
  # absl calls a filter once however often it is added.
  logging.getLogger('absl').addFilter(_is_wanted)
  handlers = {n: ocp.JsonCheckpointHandler() for n in JSON_ITEMS}
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


def _is_wanted(record: logging.LogRecord) -> bool:
  """False for what orbax tells about its own doings, dozens of lines a save."""
  return record.levelno > logging.INFO or '/orbax/' not in record.pathname


def open_to_read(workdir: str) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run that is only read."""
  if not os.path.isdir(workdir):
    raise ValueError(
      f'workdir: got {workdir!r}, allowed: the directory of a run'
    )
  return open_manager(directory_of(workdir), create=False)


def steps_of(manager: ocp.CheckpointManager) -> list[int]:
  """Steps of the checkpoints there are, in order."""
  return sorted(manager.all_steps())


def choose_step(manager: ocp.CheckpointManager, step: int | None) -> int:
  """The step asked for, the latest for None; it must be there."""
  steps = steps_of(manager)
  if not steps:
    raise ValueError(
      f'{manager.directory}: no checkpoint there, where training writes them'
    )
  if step is None:
    return steps[-1]
  if step not in steps:
    raise ValueError(
      f'{manager.directory}: got step {step}, allowed: {listed(steps)}'
    )
  return step


def listed(steps: list[int]) -> str:
  """Steps for a message."""
  return ', '.join(map(str, steps))


def _damaged(
  manager: ocp.CheckpointManager, step: int, detail: str
) -> ValueError:
  path = os.path.join(manager.directory, str(step))
  others = [other for other in steps_of(manager) if other != step]
  return ValueError(
    f'{path}: this checkpoint is damaged ({detail}); others there:'
    f' {listed(others) or "none"}; move it away to go on from another'
  )


def _read(manager: ocp.CheckpointManager, step: int, **items) -> Any:
  """Restores items, with one error for the many ways a file can be broken."""
  _hush_leftovers()
  try:
    return manager.restore(step, args=ocp.args.Composite(**items))
  except jax.errors.JaxRuntimeError:
    # Out of device memory, for one: not the files' fault.
    raise
  except Exception as error:
    raise _damaged(manager, step, _first_line(error)) from error


@functools.cache
def _hush_leftovers() -> None:
  """Keeps reads that orbax gave up from telling of the same failure again.

  Each is a coroutine that nobody waits for, and would print a traceback when it
  is collected: before the error arrives here, or at the end of the process.
  """
  previous = sys.unraisablehook

  def hook(unraisable):
    code = getattr(unraisable.object, 'cr_code', None)
    if code is None or '/orbax/' not in code.co_filename:
      previous(unraisable)

  sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
  text = str(error).strip().split('\n')[0][:100]
  return f'{type(error).__name__}: {text}'


def read_json(manager: ocp.CheckpointManager, step: int, *names: str) -> Any:
  """Reads items that are JSON; the result has them as attributes."""
  return _read(manager, step, **{n: ocp.args.JsonRestore() for n in names})


def read_state(
  manager: ocp.CheckpointManager,
  step: int,
  abstract: PyTree,
  is_wanted: Callable[[str], bool] = lambda path: True,
) -> PyTree:
  """Reads the leaves of a state that are wanted, and compares checksums.

  Args:
    manager: From `open_to_read`.
    step: Which checkpoint.
    abstract: A tree of exactly those leaves.
    is_wanted: From the '/'-joined path of a leaf to whether it is.

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
  _check_leaves(path, saved, by_path(abstract))
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
    state=ocp.args.PyTreeRestore(
      item=target,
      restore_args=ocp.checkpoint_utils.construct_restore_args(target),
      partial_restore=True,
    ),
    checksums=ocp.args.JsonRestore(),
  )
  for name, checksum in checksums(restored.state).items():
    if restored.checksums.get(name) != checksum:
      raise _damaged(manager, step, f'wrong checksum of {name}')
  return restored.state


def _check_leaves(
  path: str, saved: dict[str, Any], wanted: dict[str, Any]
) -> None:
  """Raises if the leaves saved are not the leaves wanted, naming one."""
  for name in wanted | saved:
    if name not in saved:
      raise ValueError(f'{path}: {name} is not in the checkpoint')
    if name not in wanted:
      raise ValueError(f'{path}: {name} is in the checkpoint but not wanted')
    got, want = (
      f'{x.dtype}{list(x.shape)}' for x in (saved[name], wanted[name])
    )
    if got != want:
      raise ValueError(f'{path}: {name} is {got} in the checkpoint, not {want}')


_POLICIES = ocp.checkpoint_managers


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint holds.

  Attributes:
    state: The training state, a tree of jax arrays.
    data_position: JSON values that say where the data pipeline stands.
    config: JSON values of the run's config.
    step: Which checkpoint it was.
  """

  state: PyTree
  data_position: dict[str, Any]
  config: dict[str, Any]
  step: int


class Checkpointer:
  """Writes and reads the checkpoints of a run. Every process must take part."""

  def __init__(
    self, workdir: str, max_to_keep: int, best_metric: str | None = None
  ):
    """Opens the checkpoints of a run, creating the directory if need be.

    What a killed run left half-written is removed.

    Args:
      workdir: The run's directory.
      max_to_keep: How many of the latest checkpoints to keep.
      best_metric: Name of a metric, the lower the better, by which one more
        checkpoint is kept: the best. None to keep the latest only.
    """
    self.directory = directory_of(workdir)
    self._best_metric = best_metric
    policies = [_POLICIES.LatestN(max_to_keep)]
    if best_metric is not None:
      policies.append(
        _POLICIES.BestN(
          get_metric_fn=self._score,
          reverse=True,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = open_manager(
      self.directory,
      cleanup_tmp_directories=True,
      # Without it orbax does not write the metrics down.
      best_fn=None if best_metric is None else self._score,
      best_mode='min',
      preservation_policy=_POLICIES.AnyPreservationPolicy(policies),
    )

  def _score(self, metrics: Mapping[str, float]) -> float:
    return metrics.get(self._best_metric, math.inf)

  def save(
    self,
    step: int,
    state: PyTree,
    data_position: Mapping[str, Any],
    config_dict: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to write a checkpoint, after waiting for the one before.

    When it returns the state may be donated, as the next step does.

    Args:
      step: Optimizer steps done.
      state: A tree of jax arrays.
      data_position: JSON values that say where the data pipeline stands.
      config_dict: JSON values of the run's config.
      metrics: Held-out metrics of this step, of which `best_metric` is used.
        A checkpoint without, or with one that is not finite, is never best.

    Raises:
      ValueError: If `step` is not later than all checkpoints there are.
    """
    latest = self.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(
        f'{self.directory}: got step {step} to save, allowed: a step after the'
        f' latest checkpoint ({latest}); move later ones away to branch off'
      )
    best = {}
    if metrics is not None and self._best_metric is not None:
      value = float(metrics[self._best_metric])
      # A NaN would upset the order, and JSON knows none.
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
      # Orbax would drop saves that it finds too early, without a word.
      force=True,
    )

  def steps(self) -> list[int]:
    """Returns the steps of the checkpoints there are, in order."""
    return steps_of(self._manager)

  def latest_step(self) -> int | None:
    """Step of the latest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def restore(
    self, abstract_state: PyTree, step: int | None = None
  ) -> Restored:
    """Reads a checkpoint.

    Args:
      abstract_state: A tree like the state, of shapes, dtypes and shardings
        (`jax.ShapeDtypeStruct`). The mesh need not be the one it was saved
        from. A leaf without sharding goes to the default device.
      step: Which checkpoint, the latest by default.

    Returns:
      What it holds.

    Raises:
      ValueError: If there is no such checkpoint, it is damaged, or its leaves
        are not those of `abstract_state`.
    """
    self.wait()
    return _restore(self._manager, abstract_state, step)

  def wait(self) -> None:
    """Returns when what was saved is on the disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go of the directory."""
    self._manager.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def latest_step(workdir: str) -> int | None:
  """Step of the latest checkpoint of a run, None if there is none."""
  if not os.path.isdir(directory_of(workdir)):
    return None
  with open_to_read(workdir) as manager:
    return manager.latest_step()


def restore(
  workdir: str, abstract_state: PyTree, step: int | None = None
) -> Restored:
  """`Checkpointer.restore` of a run that is only read."""
  with open_to_read(workdir) as manager:
    return _restore(manager, abstract_state, step)


def read_config(workdir: str, step: int | None = None) -> dict[str, Any]:
  """Returns the config in a checkpoint, the latest one by default.

  Raises:
    ValueError: If there is no such checkpoint or it is damaged.
  """
  with open_to_read(workdir) as manager:
    step = choose_step(manager, step)
    return read_json(manager, step, 'config').config


def restore_variables(
  workdir: str,
  abstract_variables: Mapping[str, PyTree],
  step: int | None = None,
) -> dict[str, PyTree]:
  """Reads some fields of a state only, as inference needs.

  Args:
    workdir: The directory of the run.
    abstract_variables: Field of the state (params, collections) to the tree
      of shapes and dtypes in it, with or without shardings.
    step: Which checkpoint, the latest by default.

  Returns:
    The fields, filled; on the default device where no sharding is given.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or its leaves
      are not those of `abstract_variables`.
  """
  with open_to_read(workdir) as manager:
    step = choose_step(manager, step)
    return read_state(
      manager,
      step,
      dict(abstract_variables),
      lambda path: path.split('/')[0] in abstract_variables,
    )


def restore_part(
  workdir: str, abstract_part: PyTree, place: tuple[str, ...]
) -> PyTree:
  """Reads what the latest state has of one module.

  Where a run averages its parameters, their average is what it has trained.

  Args:
    workdir: The directory of the run.
    abstract_part: `params` and `collections` with all that the state has of the
      module, and nothing else: shapes, dtypes and shardings.
    place: Path of the module.

  Returns:
    The same, filled.

  Raises:
    ValueError: As `restore_variables`.
  """
  with open_to_read(workdir) as manager:
    step = choose_step(manager, None)
    config = read_json(manager, step, 'config').config
    has_ema = config['optimizer']['ema_decay'] > 0
    params = 'ema' if has_ema else 'params'

    def is_of_part(path):
      field, *rest = path.split('/')
      # Collections have a name each.
      below = rest if field == params else rest[1:]
      return (
        field in (params, 'collections') and tuple(below[: len(place)]) == place
      )

    fields = dict(abstract_part)
    fields[params] = fields.pop('params')
    loaded = read_state(manager, step, fields, is_of_part)
    loaded['params'] = loaded.pop(params)
    return loaded


def _restore(
  manager: ocp.CheckpointManager, abstract_state: PyTree, step: int | None
) -> Restored:
  step = choose_step(manager, step)
  state = read_state(manager, step, abstract_state)
  items = read_json(manager, step, 'data', 'config')
  return Restored(state, items.data, items.config, step)
