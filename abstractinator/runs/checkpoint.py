"""Checkpoints of a run: training state, data position, config, checksums.

A checkpoint is a directory WORKDIR/checkpoints/STEP that appears whole or not
at all. It is written in the background while training continues. Orbax does not
notice bytes that change on the disk, so each checkpoint has an item
`checksums`: the step and a checksum of each array and of each JSON item, which
are compared when something is read. Nothing falls back to an older checkpoint
by itself: the error for a damaged one lists the others.
"""

import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp

from abstractinator.runs import checksums
from abstractinator.types import PyTree

_JSON_ITEMS = ('data', 'config', 'checksums')


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


def latest_step(workdir: str) -> int | None:
  """Returns the step of the latest checkpoint of a run, None without one.

  Raises:
    ValueError: If `checkpoints` is no directory.
  """
  return max(all_steps(workdir), default=None)


def all_steps(workdir: str) -> list[int]:
  """Returns the steps of the checkpoints of a run, in order.

  Raises:
    ValueError: If `checkpoints` is no directory.
  """
  return _steps_in(directory_of(workdir))


def read_config(
  workdir: str, step: int | None = None
) -> tuple[int, dict[str, Any]]:
  """Returns the step of a checkpoint of a run, and the config in it.

  Args:
    workdir: Directory of the run.
    step: Step of the checkpoint; the latest one by default.

  Raises:
    ValueError: If there is no such checkpoint or it is damaged.
  """
  with _open_to_read(workdir) as manager:
    step = _choose_step(manager, step)
    record = _read_record(manager, step)
    return step, _read_item(manager, step, 'config', record)


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
    record = _read_record(manager, step)
    data, config = (
      _read_item(manager, step, name, record) for name in ('data', 'config')
    )
    state = _read_state(manager, step, record, abstract_state)
    return Restored(state, data, config, step)


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
    record = _read_record(manager, step)
    found = _read_state(manager, step, record, fields, is_wanted)
  return {'params': found[params_field], **found.get('collections', {})}


def _read_state(
  manager: ocp.CheckpointManager,
  step: int,
  record: Mapping[str, Any],
  abstract: PyTree,
  is_wanted: Callable[[str], bool] = lambda path: True,
) -> PyTree:
  """Reads arrays of a state and compares their checksums.

  Args:
    manager: Manager of the checkpoints of the run.
    step: Step of the checkpoint.
    record: Its item `checksums`.
    abstract: A tree of shapes and dtypes, with or without shardings.
    is_wanted: Tells by the '/'-joined path of an array whether it is read.
      `abstract` has exactly these arrays.

  Returns:
    The tree, filled.
  """
  path = manager.directory / str(step)
  try:
    # By the manager metrics would be read, too.
    metadata = ocp.PyTreeCheckpointHandler().metadata(path / 'state')
  except Exception as error:
    detail = f'state: {_first_line(error)}'
    raise_damaged(manager.directory, step, detail, error)
  saved = checksums.by_path(metadata.tree)
  saved = {name: leaf for name, leaf in saved.items() if is_wanted(name)}
  checksums.require_same_leaves(str(path), saved, checksums.by_path(abstract))
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
    'state',
    ocp.args.PyTreeRestore(
      item=target,
      restore_args=ocp.checkpoint_utils.construct_restore_args(target),
      partial_restore=True,
    ),
  )
  for name, checksum in checksums.of_arrays(restored).items():
    if record['arrays'].get(name) != checksum:
      raise_damaged(manager.directory, step, f'state: wrong checksum of {name}')
  return restored


def _read_record(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """Reads the item `checksums`, by which all others are checked."""
  record = _read(manager, step, 'checksums', ocp.args.JsonRestore())
  require_sound_record(manager.directory, step, record)
  return record


def require_sound_record(
  directory: str | os.PathLike[str], step: int, record: Any
) -> None:
  """Raises ValueError if the item `checksums` of a checkpoint is damaged.

  Args:
    directory: Directory of all checkpoints of the run.
    step: Step of the checkpoint.
    record: JSON values of the item.
  """
  if not checksums.is_sealed(record):
    raise_damaged(directory, step, 'checksums: wrong checksum')
  if record['step'] != step:
    detail = f'checksums: it was written as step {record["step"]}'
    raise_damaged(directory, step, detail)


def _read_item(
  manager: ocp.CheckpointManager,
  step: int,
  name: str,
  record: Mapping[str, Any],
) -> dict[str, Any]:
  """Reads a JSON item of a checkpoint and compares its checksum."""
  values = _read(manager, step, name, ocp.args.JsonRestore())
  if record['items'].get(name) != checksums.of_json(values):
    raise_damaged(manager.directory, step, f'{name}: wrong checksum')
  return values


def _read(
  manager: ocp.CheckpointManager,
  step: int,
  name: str,
  args: ocp.args.CheckpointArgs,
) -> Any:
  """Reads an item of a checkpoint with its arguments of orbax.

  The errors of orbax, which are of many types, become one ValueError.
  """
  try:
    composite = ocp.args.Composite(**{name: args})
    return manager.restore(step, args=composite)[name]
  except jax.errors.JaxRuntimeError:
    # An error of the device, such as too little memory, not of the files.
    raise
  except Exception as error:
    detail = f'{name}: {_first_line(error)}'
    raise_damaged(manager.directory, step, detail, error)


@functools.cache
def _silence_abandoned_tasks() -> None:
  """Suppresses the tracebacks of tasks that orbax abandons after a failure.

  When one read or write fails, orbax leaves the coroutines of the others
  unawaited and closes their event loop. Each would print a traceback of the
  same failure when it is collected, before the error arrives here or at the end
  of the process.
  """
  previous = sys.unraisablehook

  def hook(unraisable: 'sys.UnraisableHookArgs') -> None:
    code = getattr(unraisable.object, 'cr_code', None)
    is_abandoned = code is not None and '/orbax/' in code.co_filename
    if not is_abandoned and str(unraisable.exc_value) != 'Event loop is closed':
      previous(unraisable)

  sys.unraisablehook = hook
  logging.getLogger('asyncio').addFilter(_is_wanted_message)


def raise_damaged(
  directory: str | os.PathLike[str],
  step: int,
  detail: str,
  cause: Exception | None = None,
) -> NoReturn:
  """Raises ValueError about a damaged checkpoint.

  Args:
    directory: Directory of all checkpoints of the run.
    step: Step of the damaged one.
    detail: Name of the damaged item, and what is wrong with it.
    cause: Error that came of it, if any.
  """
  others = _listed(x for x in _steps_in(os.fspath(directory)) if x != step)
  raise ValueError(
    f'{directory}/{step}: this checkpoint is damaged ({detail}); others there:'
    f' {others or "none"}; move it away to continue from another'
  ) from cause


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


def directory_of(workdir: str) -> str:
  """Returns the directory of the checkpoints of a run.

  Raises:
    ValueError: If there is something else in its place.
  """
  path = os.path.join(os.path.abspath(workdir), 'checkpoints')
  if os.path.lexists(path) and not os.path.isdir(path):
    raise ValueError(f'{path}: is no directory, allowed: one of checkpoints')
  return path


def _open_to_read(workdir: str) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run without changing anything on the disk."""
  if not os.path.isdir(workdir):
    raise ValueError(
      f'workdir: got {workdir!r}, allowed: the directory of a run'
    )
  # A reader needs no metrics, and so their damage does not concern it.
  directory = directory_of(workdir)
  return open_manager(directory, create=False, lightweight_initialize=True)


def open_manager(directory: str, **options: Any) -> ocp.CheckpointManager:
  """Opens a directory of checkpoints with `CheckpointManagerOptions`."""
  # absl calls a filter once however often it is added.
  logging.getLogger('absl').addFilter(_is_wanted_message)
  _silence_abandoned_tasks()
  handlers: dict[str, Any] = {
    n: ocp.JsonCheckpointHandler() for n in _JSON_ITEMS
  }
  handlers['state'] = ocp.PyTreeCheckpointHandler()
  return ocp.CheckpointManager(
    directory,
    item_handlers=handlers,
    options=ocp.CheckpointManagerOptions(**options),
  )


def _is_wanted_message(record: logging.LogRecord) -> bool:
  """Rejects what orbax tells of each save, and of errors that it raises too."""
  traceback = record.exc_info[2] if record.exc_info else None
  while traceback is not None:
    if '/orbax/' in traceback.tb_frame.f_code.co_filename:
      return False
    traceback = traceback.tb_next
  return record.levelno > logging.INFO or '/orbax/' not in record.pathname


def _steps_in(directory: str) -> list[int]:
  """Returns the steps of the checkpoints in a directory, in order."""
  if not os.path.isdir(directory):
    return []
  return sorted(
    int(name)
    for name in os.listdir(directory)
    if name.isascii()
    and name.isdecimal()
    and os.path.isdir(os.path.join(directory, name))
  )
