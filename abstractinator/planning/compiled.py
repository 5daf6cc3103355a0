"""The training step of a run, compiled for devices that are not at hand."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence

import jax

from abstractinator.config import MeshConfig, RunConfig
from abstractinator.training import sharding
from abstractinator.training.flops import matmul_flops
from abstractinator.training.model_flops import (
  abstract_batch,
  abstract_state,
  model_flops,
  xla_program,
)
from abstractinator.training.program import Program, make_program
from abstractinator.types import PyTree


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a step takes on any chips.

  Attributes:
    parameters: How many there are.
    model_flops: Of the matrix products of the model, see `training_flops`.
    step_flops: Of those of the step, what it computes again included.
  """

  parameters: int
  model_flops: int
  step_flops: int


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step on a mesh.

  Attributes:
    state_bytes: Of the state, of one chip.
    memory_bytes: What a chip holds at the fullest point of a step.
    seconds: To compile it.
    text: The program, as XLA writes it.
  """

  state_bytes: int
  memory_bytes: int
  seconds: float
  text: str


class OutOfMemoryError(Exception):
  """XLA found that a program does not fit a chip."""


def _program(config: RunConfig, platform: str) -> Program:
  # How long the run is decides the schedule alone, which has any length.
  return make_program(config, platform, config.optimizer.warmup_steps + 10**6)


def sizes(config: RunConfig) -> Sizes:
  """Counts, without compiling; XLA computes what kernels would."""
  program, state = xla_program(config), abstract_state(config)
  return Sizes(
    sum(x.size for x in jax.tree.leaves(state.params)),
    model_flops(config),
    matmul_flops(program.step, state, abstract_batch(config)),
  )


class Step:
  """A step on a mesh, to be compiled."""

  def __init__(
    self,
    config: RunConfig,
    mesh: MeshConfig,
    devices: Sequence[jax.Device],
    platform: str,
  ):
    """Lays the state out over devices.

    Args:
      config: The run.
      mesh: In place of that of the run.
      devices: All of the mesh.
      platform: 'gpu' or 'tpu'.

    Raises:
      ValueError: If the mesh or the batch does not fit the devices.
    """
    self._config = config
    self._mesh = sharding.make_mesh(mesh, devices)
    rows = math.prod(self._mesh.shape[axis] for axis in sharding.BATCH_AXES)
    rows *= config.microbatches
    if config.data.batch_size % rows:
      raise ValueError(
        f'data.batch_size: got {config.data.batch_size}, allowed: a multiple of'
        f' mesh.data * mesh.fsdp * microbatches ({rows})'
      )
    self._program = _program(config, platform)
    abstract = jax.eval_shape(self._program.init, jax.random.key(0))
    self._shardings = sharding.state_shardings(abstract, self._mesh)
    self._state = sharding.with_shardings(abstract, self._shardings)

  def state_bytes(self) -> int:
    """Of the state, of one chip."""
    return sum(map(_shard_bytes, jax.tree.leaves(self._state)))

  def compile(self) -> Compiled:
    """Compiles it as a run would.

    Raises:
      OutOfMemoryError: If it does not fit, with what XLA says.
    """
    place = sharding.batch_sharding(self._mesh)
    step = jax.jit(
      self._program.step,
      in_shardings=(self._shardings, place),
      out_shardings=(self._shardings, sharding.replicated(self._mesh)),
      donate_argnums=0,
    )
    start = time.perf_counter()
    try:
      with jax.set_mesh(self._mesh):
        compiled = step.lower(
          self._state, abstract_batch(self._config, place)
        ).compile()
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise OutOfMemoryError(_used(str(error))) from error
    memory = compiled.memory_analysis()
    return Compiled(
      self.state_bytes(),
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes,
      time.perf_counter() - start,
      compiled.as_text(),
    )


def _shard_bytes(leaf: PyTree) -> int:
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _used(message: str) -> str:
  found = re.search(r'Used [\d.]+\w? of [\d.]+\w? \w+', message)
  return found[0] if found else message.splitlines()[0]
