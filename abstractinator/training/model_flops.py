"""Floating point operations of a step of a run, on any platform."""

import dataclasses

import jax

from abstractinator.config import ImplementationConfig, RunConfig
from abstractinator.training.flops import training_flops
from abstractinator.training.program import Program, make_program


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


def model_flops(config: RunConfig) -> int:
  """Of the matrix products of a step of all devices, see `training_flops`."""
  # To initialize a model is to run it.
  return training_flops(xla_program(config).init, jax.random.key(0))
