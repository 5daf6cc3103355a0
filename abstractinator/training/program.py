"""Functions that train a run, from its config to what can be compiled."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from abstractinator.config import ImplementationConfig, RunConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.objective.learning import Learning
from abstractinator.objective.metrics import Metrics
from abstractinator.objective.objectives import OBJECTIVES, Objective
from abstractinator.runs.state import TrainState, initial_state
from abstractinator.training.optimizer import make_optimizer
from abstractinator.training.step import train_step
from abstractinator.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class TrainingProgram:
  """A model and the functions that train it.

  Attributes:
    model: The model that is trained.
    objective: The objective of the run.
    init: Returns the state of step 0, given a random key.
    step: Returns the next state and metrics, given a state and a batch; see
      `train_step`.
  """

  model: AbstractinatorPyramid
  objective: Objective
  init: Callable[[Array], TrainState]
  step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_program(
  config: RunConfig, platform: str, total_steps: int
) -> TrainingProgram:
  """Builds the functions of a run; computes nothing.

  Args:
    config: Config of the run.
    platform: 'cpu', 'gpu' or 'tpu', which decides the implementation of ops.
    total_steps: Number of optimizer steps of the run.

  Returns:
    The program.
  """
  model = make_model(config, platform)
  objective = OBJECTIVES[config.objective]
  optimizer = Learning(config.model, config.loss).hide(
    make_optimizer(config.optimizer, total_steps)
  )
  return TrainingProgram(
    model,
    objective,
    init=functools.partial(
      initial_state,
      model=model,
      optimizer=optimizer,
      batch_size=config.data.batch_size,
      sequence_length=config.data.sequence_length,
      method=objective.init_method,
      has_ema=config.optimizer.ema_decay > 0,
    ),
    step=functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      weights=config.loss,
      objective=objective,
      seed=config.seed,
      microbatches=config.microbatches,
      ema_decay=config.optimizer.ema_decay,
    ),
  )


def xla_program(config: RunConfig) -> TrainingProgram:
  """Builds the functions of a run with all ops by XLA, without kernels.

  Args:
    config: Config of the run; `remat` and `scan_layers` stay as they are.

  Returns:
    The program, which can be traced on any machine.
  """
  given = config.model.implementation
  xla = dataclasses.replace(
    ImplementationConfig.everywhere('xla'),
    remat=given.remat,
    scan_layers=given.scan_layers,
  )
  model = dataclasses.replace(config.model, implementation=xla)
  return make_program(
    dataclasses.replace(config, model=model),
    'cpu',
    # The number of steps decides the learning rate alone.
    total_steps=config.optimizer.warmup_steps + 1,
  )


@functools.cache
def state_shapes(config: RunConfig) -> TrainState:
  """Returns the shapes and types of a run's state, which no kernel changes."""
  return jax.eval_shape(xla_program(config).init, jax.random.key(0))


def batch_shapes(
  config: RunConfig, place: jax.sharding.Sharding | None = None
) -> Batch:
  """Returns the shapes and types of a run's batches, of bytes or of codes.

  Args:
    config: Config of the run.
    place: Sharding of the batches, if they have one.
  """
  length = config.data.sequence_length
  if OBJECTIVES[config.objective].reads_codes:
    length = config.model.num_top_codes(length)
  rows = config.data.batch_size
  make: Callable[..., Any] = functools.partial(
    jax.ShapeDtypeStruct, dtype='int32', sharding=place
  )
  ids_BS = make((rows, length))
  return Batch(ids_BS, ids_BS, make((rows,)))
