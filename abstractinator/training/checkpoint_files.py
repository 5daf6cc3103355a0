"""Files of checkpoints, and what can be wrong with them.

Orbax answers a broken file with one of many exceptions; here each becomes one
ValueError that names the checkpoint.
"""

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from abstractinator.training.checksum import by_path, checksums
from abstractinator.types import PyTree

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
