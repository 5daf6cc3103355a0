"""Trained variables of a run, read for use without further training."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from abstractinator.config import ImplementationConfig, RunConfig
from abstractinator.decoding.pyramid import make_model
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs import (
  checksums,
  exported,
  hub,
  processes,
  workdir,
)
from abstractinator.runs.state import abstract_variables, trained_params_field
from abstractinator.types import NUM_BYTES, PyTree


@dataclasses.dataclass(frozen=True)
class Source:
  """A trained model on the disk: a run, or a folder exported from one.

  Attributes:
    path: Directory of the model.
    step: Step of the checkpoint.
    config: Config of the run. Its `model.implementation` is 'auto': a model
      trained by kernels of one platform is read on any.
  """

  path: str
  step: int
  config: RunConfig

  def variables(
    self, abstract: Mapping[str, PyTree], place: tuple[str, ...] = ()
  ) -> dict[str, PyTree]:
    """Reads the variables of the model, or of one module of it.

    Args:
      abstract: `params` and the collections of the module: shapes and dtypes,
        with or without shardings.
      place: Path of the module in the model; the whole model by default.

    Returns:
      The variables, filled; `params` is the moving average if there is one.

    Raises:
      ValueError: If they are damaged, or differ in paths, shapes or dtypes.
    """
    return _reader(self.path).restore_variables(
      self.path,
      abstract,
      self.step,
      params_field=trained_params_field(self.config),
      place=place,
    )

  def all_variables(self) -> dict[str, PyTree]:
    """Reads the variables of a model of bytes, to host or device memory.

    Raises:
      ValueError: If they are damaged, or the ids of the model are no bytes.
    """
    config = self.config
    if config.data.vocab_size != NUM_BYTES:
      raise ValueError(
        f'{self.path}: data.vocab_size: got {config.data.vocab_size}, allowed:'
        f' {NUM_BYTES}, for a model of bytes'
      )
    return self.variables(
      abstract_variables(
        make_model(config, jax.default_backend()),
        config.data.sequence_length,
        OBJECTIVES[config.objective].init_method,
      )
    )


def open_source(source: str, step: int | None = None) -> Source:
  """Opens a trained model.

  Args:
    source: Directory of a run or of an exported model; or `hf:NAME`, see `hub`.
    step: Step of the checkpoint; the latest one by default.

  Raises:
    ValueError: If there is no such checkpoint, or it is damaged, or its config
      lacks a setting.
  """
  processes.require_device()
  path = hub.directory_of(source)
  step, stored = _reader(path).read_config(path, step)
  config = RunConfig.from_stored(stored, path)
  auto = ImplementationConfig.everywhere('auto')
  model = dataclasses.replace(config.model, implementation=auto)
  return Source(path, step, dataclasses.replace(config, model=model))


def _reader(path: str) -> ModuleType:
  """Returns the module that reads a model: of checkpoints, or exported."""
  if workdir.is_exported(path):
    return exported
  # The import of Orbax takes a third of a second.
  from abstractinator.runs import checkpoint

  return checkpoint


def read_trained(
  source: str, step: int | None = None
) -> tuple[RunConfig, PyTree]:
  """Reads the config and all variables of a trained model of bytes.

  Args:
    source: Directory of a run or of an exported model; or `hf:NAME`.
    step: Step of the checkpoint; the latest one by default.

  Raises:
    ValueError: If `open_source` or `Source.all_variables` raises it.
  """
  opened = open_source(source, step)
  return opened.config, opened.all_variables()


def fingerprint(config: RunConfig, variables: PyTree) -> str:
  """Returns a sha256, in hex, of all that determines the codes of a text.

  Args:
    config: Config of the run.
    variables: `params` and the collections of its model.
  """
  settings = [config.model.to_dict(), config.data.sequence_length]
  return fingerprint_of(settings, variables).hex()


def fingerprint_of(settings: Any, variables: PyTree) -> bytes:
  """Returns a sha256 that tells one model, or part of a model, from another.

  Args:
    settings: JSON values that decide how the variables are used.
    variables: Tree of arrays; paths, dtypes, shapes and bits count.
  """
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  for name, leaf in checksums.by_path(variables).items():
    leaf = np.asarray(leaf)
    digest.update(f'{name} {leaf.dtype} {leaf.shape}\n'.encode())
    digest.update(leaf.tobytes())
  return digest.digest()
