"""What a run computes, from its config to functions that can be compiled."""

import dataclasses
import functools
from collections.abc import Callable

from abstractinator.config import RunConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.objective.frozen import Frozen
from abstractinator.objective.metrics import Metrics
from abstractinator.objective.objectives import OBJECTIVES, Objective
from abstractinator.runs.state import TrainState, initial_state
from abstractinator.training.optimizer import make_optimizer
from abstractinator.training.step import train_step
from abstractinator.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class Program:
  """A model and how it is trained.

  Attributes:
    model: All levels.
    objective: What is trained.
    init: From a key to the state of step 0.
    step: From a state and a batch to the next state and metrics; see
      `train_step`.
  """

  model: AbstractinatorPyramid
  objective: Objective
  init: Callable[[Array], TrainState]
  step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_program(config: RunConfig, platform: str, total_steps: int) -> Program:
  """Builds the functions of a run; computes nothing.

  Args:
    config: The run.
    platform: 'cpu', 'gpu' or 'tpu', which decides the implementation of ops.
    total_steps: Optimizer steps of the whole run.

  Returns:
    The program.

  Raises:
    ValueError: If the warm-up is longer than the run.
  """
  model = make_model(config, platform)
  objective = OBJECTIVES[config.objective]
  optimizer = Frozen(config.model).hide(
    make_optimizer(config.optimizer, total_steps)
  )
  return Program(
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
