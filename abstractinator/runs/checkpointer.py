"""Writer of the checkpoints of a run; `checkpoint` reads them."""

import contextlib
import functools
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import orbax.checkpoint as ocp

from abstractinator.runs import checkpoint, checksums, processes
from abstractinator.types import PyTree

_POLICIES = ocp.checkpoint_managers


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
      OSError: If the directory cannot be written to.
    """
    self.directory = checkpoint.directory_of(workdir)
    require_sound_metrics(workdir)
    self._best_metric = best_metric
    self._first_error = _FirstError()
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
    self._manager = checkpoint.open_manager(
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
      OSError: If this checkpoint or the one before cannot be written.
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
    items = {'data': dict(data_position), 'config': dict(config_dict)}
    record = _record(step, state, {**items, 'metrics': best})
    with self._writing():
      self._wait()
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          checksums=ocp.args.JsonSave(record),
          **{name: ocp.args.JsonSave(value) for name, value in items.items()},
        ),
        metrics=best,
        # Orbax would silently skip a save that it considers too early.
        force=True,
      )

  def check(self) -> None:
    """Raises OSError if the checkpoint before could not be written.

    It does not wait for one that is still being written.
    """
    with self._writing():
      if self._first_error.error is not None:
        raise self._first_error.error
      if not self._manager.is_saving_in_progress():
        self._manager.wait_until_finished()

  def _wait(self) -> None:
    """Waits for the checkpoint before, as long as it can be written."""
    while self._manager.is_saving_in_progress():
      self.check()
      time.sleep(0.01)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns errors of the disk, which orbax reports in many ways, into one."""
    try:
      yield
    except Exception as error:
      reason = _disk_error(error)
      if reason is None:
        raise
      raise OSError(
        f'{self.directory}: a checkpoint cannot be written ({reason})'
      ) from error

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
    """Waits until the last checkpoint is on the disk.

    After a fault of one of several processes nothing waits: the others may be
    gone.

    Raises:
      OSError: If it cannot be written.
    """
    is_fault = kind is not None and issubclass(kind, processes.FAULTS)
    if is_fault and not processes.is_alone():
      return
    with self._writing():
      if not is_fault:
        self._wait()
      self._manager.close()


class _FirstError(logging.Filter):
  """Keeper of the first error of the thread that writes checkpoints.

  Orbax logs it at once. Before it raises it, it waits for the other processes,
  and they wait for this one.
  """

  def __init__(self) -> None:
    super().__init__()
    self.error: BaseException | None = None
    # Before the filters that reject what orbax logs.
    logging.getLogger('absl').filters.insert(0, self)

  def filter(self, record: logging.LogRecord) -> bool:
    if record.exc_info and record.threadName == 'async_save':
      self.error = self.error or record.exc_info[1]
    return True


def _value_or_inf(metrics: Mapping[str, float], *, name: str) -> float:
  return metrics.get(name, math.inf)


def _record(
  step: int, state: PyTree, items: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the item `checksums`, by which all others are checked."""
  return checksums.sealed(
    {
      'step': step,
      'arrays': checksums.of_arrays(state),
      'items': {name: checksums.of_json(x) for name, x in items.items()},
    }
  )


def _disk_error(error: BaseException | None) -> str | None:
  """Returns the reason the disk gave for an error; None for other errors."""
  while error is not None:
    if isinstance(error, OSError) and error.strerror:
      return error.strerror
    # TensorStore, which writes arrays, has errors of its own.
    found = re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))
    if found:
      return os.strerror(int(found[1]))
    error = error.__cause__ or error.__context__
  return None


def require_sound_metrics(workdir: str) -> None:
  """Raises ValueError if the metrics of a checkpoint are damaged.

  A run that is killed while it deletes an old checkpoint leaves parts of it, so
  missing files are no damage here.
  """
  directory = checkpoint.directory_of(workdir)
  for step in checkpoint.all_steps(workdir):
    path = os.path.join(directory, str(step))
    files = {'checksums': 'metadata', 'metrics': 'metrics'}
    values = {}
    for item, name in files.items():
      try:
        with open(os.path.join(path, item, name), 'rb') as file:
          values[item] = json.load(file)
      except FileNotFoundError:
        break
      except (ValueError, RecursionError) as error:
        checkpoint.raise_damaged(directory, step, f'{item}: {error}', error)
    else:
      record = values['checksums']
      checkpoint.require_sound_record(directory, step, record)
      if record['items']['metrics'] != checksums.of_json(values['metrics']):
        checkpoint.raise_damaged(directory, step, 'metrics: wrong checksum')
