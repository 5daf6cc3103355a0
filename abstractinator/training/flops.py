"""How well a run uses its devices: share of their peak, memory."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from abstractinator.config import ImplementationConfig, RunConfig
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.chips import chip_of
from abstractinator.runs.state import TrainState, variables_of
from abstractinator.training.program import Program, make_program
from abstractinator.types import Batch


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
  """Counts the matrix products of a function; everything else is free.

  A multiplication and an addition count as two. What is masked after it is
  computed counts, since it is computed.

  Args:
    function: Anything jax can trace.
    *args: Its arguments, or their shapes and types.

  Returns:
    How many. The body of a `scan` counts as often as it runs, that of a
    `while_loop` once; of the branches of a `cond`, the dearest counts.
  """
  return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def training_flops(loss: Callable[..., Any], *args: Any) -> int:
  """Counts the matrix products of a gradient, that is of its model.

  Each product of the forward pass takes two more backward, one for each of its
  factors. What rematerialization repeats is not the model's and does not count,
  which is why the gradient itself is not looked at. Products without a
  gradient, such as the search for codes, count as though they had one.

  Args:
    loss: What is differentiated.
    *args: Its arguments, or their shapes and types.

  Returns:
    Three times the `matmul_flops` of the loss.
  """
  return 3 * matmul_flops(loss, *args)


def _flops(jaxpr: Jaxpr) -> int:
  return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
  name = equation.primitive.name
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * depth
  inner = [_flops(jaxpr) for jaxpr in _inner_jaxprs(equation)]
  if name == 'cond':
    return max(inner)
  if name == 'scan':
    return equation.params['length'] * sum(inner)
  return sum(inner)


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
  """What jit, scan, remat, custom derivatives and so on hold."""
  for value in jax.tree.leaves(
    equation.params, is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))
  ):
    if isinstance(value, ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, Jaxpr):
      yield value


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


# What a backend calls it, and what the metrics do.
_MEMORY = {
  'bytes_in_use': 'perf/device_memory_bytes',
  'peak_bytes_in_use': 'perf/device_memory_peak_bytes',
}


class DeviceMetrics:
  """Measures of the devices of a run; those that nothing is known of lack."""

  def __init__(self, config: RunConfig, devices: Sequence[jax.Device]):
    """Looks the devices up.

    Args:
      config: Of the run, of which products are counted if the peak of the
        devices is known: it takes seconds.
      devices: All of the run, of one kind.
    """
    process = jax.process_index()
    self._local = next(d for d in devices if d.process_index == process)
    chip = chip_of(self._local.device_kind)
    self._peak = chip and chip.flops_per_second * len(devices)
    self._flops = model_flops(config) if chip else None

  def tags(self, step_seconds: float | None) -> dict[str, float]:
    """Measures by tag.

    Args:
      step_seconds: Mean of the steps since the last call, None if unknown.
    """
    tags = {}
    if self._peak and step_seconds:
      rate = self._flops / step_seconds
      tags['perf/model_flops_per_second'] = rate
      tags['perf/model_flops_utilisation'] = rate / self._peak
    # None, or without some of them, as the backend likes.
    memory = self._local.memory_stats() or {}
    return tags | {
      tag: memory[name] for name, tag in _MEMORY.items() if name in memory
    }
