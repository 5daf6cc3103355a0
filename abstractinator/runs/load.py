"""Trained variables of a run, read for use without further training."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np

from abstractinator.config import ImplementationConfig, RunConfig
from abstractinator.decoding.pyramid import make_model
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs import checkpoint, checksums, processes
from abstractinator.runs.state import abstract_variables, trained_params_field
from abstractinator.types import NUM_BYTES, PyTree


def read_trained(
  workdir: str, step: int | None = None
) -> tuple[RunConfig, PyTree]:
  """Reads the config and the trained variables of a run.

  Args:
    workdir: Directory of the run.
    step: Step of the checkpoint; the latest one by default.

  Returns:
    The config of the run, and the variables of its model: `params`, which is
    their moving average if the run keeps one, and the collections, in host
    memory or on the default device. `model.implementation` of the config is
    'auto': a run trained by kernels of one platform is read on any.

  Raises:
    ValueError: If there is no such checkpoint, or it is damaged, or its config
      lacks a setting.
  """
  processes.require_device()
  stored = checkpoint.read_config(workdir, step)
  config = RunConfig.from_stored(stored, workdir)
  if config.data.vocab_size != NUM_BYTES:
    raise ValueError(
      f'{workdir}: data.vocab_size: got {config.data.vocab_size}, allowed:'
      f' {NUM_BYTES}, for a model of bytes'
    )
  auto = ImplementationConfig.everywhere('auto')
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, implementation=auto)
  )
  variables = abstract_variables(
    make_model(config, jax.default_backend()),
    config.data.sequence_length,
    OBJECTIVES[config.objective].init_method,
  )
  params_field = trained_params_field(config)
  return config, checkpoint.restore_variables(
    workdir, variables, step, params_field=params_field
  )


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
