"""What a run has trained, to be used and not trained on."""

import dataclasses
import hashlib
import json

import jax
import numpy as np

from abstractinator.config import ImplementationConfig, RunConfig
from abstractinator.decoding.pyramid import make_model
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs import checkpoint
from abstractinator.runs.state import abstract_state
from abstractinator.types import NUM_BYTES, PyTree


def read_trained(
  workdir: str, step: int | None = None
) -> tuple[RunConfig, PyTree]:
  """Reads a checkpoint of a run.

  Args:
    workdir: The directory of the run.
    step: Which checkpoint, the latest by default.

  Returns:
    The config of the run, and `params` and the collections of its model, in
    host memory or on the default device. `model.implementation` is 'auto': a
    run trained by kernels of one platform is read on any.

  Raises:
    ValueError: If there is no such checkpoint, or it is damaged, or its config
      lacks a setting.
  """
  stored = checkpoint.read_config(workdir, step)
  config = RunConfig.from_stored(stored, workdir)
  if config.data.vocab_size != NUM_BYTES:
    raise ValueError(
      f'{workdir}: data.vocab_size: got {config.data.vocab_size}, allowed:'
      f' {NUM_BYTES}; what reads a run reads and writes bytes'
    )
  auto = ImplementationConfig.everywhere('auto')
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, implementation=auto)
  )
  state = abstract_state(
    make_model(config, jax.default_backend()),
    config.data.sequence_length,
    method=OBJECTIVES[config.objective].init_method,
  )
  # The moving average in the place of what it is an average of.
  params = 'ema' if config.optimizer.ema_decay > 0 else 'params'
  fields = {params: state.params, 'collections': state.collections}
  fields = checkpoint.restore_variables(workdir, fields, step)
  return config, {'params': fields[params], **fields['collections']}


def fingerprint(config: RunConfig, variables: PyTree) -> str:
  """Tells one model from another, by all that makes its codes.

  Args:
    config: Of the run.
    variables: `params` and the collections.

  Returns:
    A sha256, in hex.
  """
  settings = [config.model.to_dict(), config.data.sequence_length]
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
  for path, leaf in leaves:
    leaf = np.asarray(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    digest.update(f'{name} {leaf.dtype} {leaf.shape}\n'.encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
