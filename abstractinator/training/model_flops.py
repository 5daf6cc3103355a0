"""Floating point operations of a step of a run, on any platform."""

import dataclasses
import functools

import jax

from abstractinator.config import ImplementationConfig, RunConfig
from abstractinator.training.flops import training_flops
from abstractinator.training.objective import OBJECTIVES
from abstractinator.training.program import Program, make_program
from abstractinator.training.state import TrainState, variables_of
from abstractinator.types import Batch


def xla_program(config: RunConfig) -> Program:
  """What a run computes, without kernels, of which nobody counts products."""
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
    # How long the run is decides the schedule alone, which has any length.
    total_steps=config.optimizer.warmup_steps + 1,
  )


@functools.cache
def abstract_state(config: RunConfig) -> TrainState:
  """Shapes of the first state of a run, which no kernel changes."""
  return jax.eval_shape(xla_program(config).init, jax.random.key(0))


def abstract_batch(
  config: RunConfig, place: jax.sharding.Sharding | None = None
) -> Batch:
  """Shapes of a batch of a run, of bytes or of codes."""
  length = config.data.sequence_length
  if OBJECTIVES[config.objective].reads_codes:
    length = config.model.num_top_codes(length)
  rows = config.data.batch_size
  make = functools.partial(jax.ShapeDtypeStruct, dtype='int32', sharding=place)
  ids_BS = make((rows, length))
  return Batch(ids_BS, ids_BS, make((rows,)))


def model_flops(config: RunConfig) -> int:
  """Of the matrix products of a step of all devices, see `training_flops`.

  Levels that are frozen count as though they learned. The objective that runs
  none of them counts none of them.
  """
  state = abstract_state(config)
  # Blocks as a loop, of which one is traced and counted as often as it runs.
  implementation = dataclasses.replace(
    config.model.implementation, scan_layers=True
  )
  model = dataclasses.replace(config.model, implementation=implementation)
  program = xla_program(dataclasses.replace(config, model=model))
  forward = functools.partial(
    program.model.apply,
    method=program.objective.method,
    mutable=list(state.collections),
    rngs={'byte_dropout': jax.random.key(0)},
  )
  return training_flops(forward, variables_of(state), abstract_batch(config))
