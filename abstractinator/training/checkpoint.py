"""Checkpoints of a run: training state, data position, config, checksums.

A checkpoint is a directory WORKDIR/checkpoints/STEP that appears whole or not
at all. It is written in the background while training goes on. Orbax does not
notice bytes that change on the disk, so each leaf has a checksum of ours,
compared when it is read. Nothing falls back to another checkpoint by itself:
an error says which others there are.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Self

import orbax.checkpoint as ocp

from abstractinator.training import checkpoint_files as files
from abstractinator.training.checksum import checksums
from abstractinator.types import PyTree

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
    self.directory = files.directory_of(workdir)
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
    self._manager = files.open_manager(
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
    return files.steps_of(self._manager)

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
  if not os.path.isdir(files.directory_of(workdir)):
    return None
  with files.open_to_read(workdir) as manager:
    return manager.latest_step()


def restore(
  workdir: str, abstract_state: PyTree, step: int | None = None
) -> Restored:
  """`Checkpointer.restore` of a run that is only read."""
  with files.open_to_read(workdir) as manager:
    return _restore(manager, abstract_state, step)


def read_config(workdir: str, step: int | None = None) -> dict[str, Any]:
  """Returns the config in a checkpoint, the latest one by default.

  Raises:
    ValueError: If there is no such checkpoint or it is damaged.
  """
  with files.open_to_read(workdir) as manager:
    step = files.choose_step(manager, step)
    return files.read_json(manager, step, 'config').config


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
  with files.open_to_read(workdir) as manager:
    step = files.choose_step(manager, step)
    return files.read_state(
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
  with files.open_to_read(workdir) as manager:
    step = files.choose_step(manager, None)
    config = files.read_json(manager, step, 'config').config
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
    loaded = files.read_state(manager, step, fields, is_of_part)
    loaded['params'] = loaded.pop(params)
    return loaded


def _restore(
  manager: ocp.CheckpointManager, abstract_state: PyTree, step: int | None
) -> Restored:
  step = files.choose_step(manager, step)
  state = files.read_state(manager, step, abstract_state)
  items = files.read_json(manager, step, 'data', 'config')
  return Restored(state, items.data, items.config, step)
