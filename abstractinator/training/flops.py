"""Floating point operations of programs, and the use of a run's devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from abstractinator.config import RunConfig
from abstractinator.runs.chips import chip_of
from abstractinator.runs.state import variables_of
from abstractinator.training.program import (
  batch_shapes,
  state_shapes,
  xla_program,
)


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
  """Counts the FLOPs of the matrix products that a function computes.

  A multiplication and an addition count as two; all other operations are free.
  Entries that are masked after they are computed count, since they are
  computed. Counted in full are

  - the body of a `scan`, as often as it runs;
  - the body of a Pallas kernel, once for each point of its grid. A kernel that
    decides while it runs which products it computes, such as attention on GPUs,
    counts as its `cost_estimate` says;
  - the branch of a `cond` that has most FLOPs.

  The body of any other `while_loop` counts once, since its length is unknown.

  Args:
    function: Any function that jax can trace.
    *args: Arguments of the function, or their shapes and types.

  Returns:
    The number of FLOPs.
  """
  return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def training_flops(loss: Callable[..., Any], *args: Any) -> int:
  """Counts the FLOPs of a model's matrix products, forward and backward.

  Each product of the forward pass takes two more in the backward pass, one for
  the gradient of each of its factors. The gradient itself is not traced: it
  holds what rematerialization computes again, which is no work of the model.
  Products without a gradient, such as the search for codes, count as though
  they had one.

  Args:
    loss: The function that is differentiated.
    *args: Arguments of the function, or their shapes and types.

  Returns:
    Three times the `matmul_flops` of the loss.
  """
  return 3 * matmul_flops(loss, *args)


def model_flops(config: RunConfig) -> int:
  """Counts the FLOPs of one training step of all devices; see `training_flops`.

  They are the same whichever implementation of the ops a run has: the program
  counted is that of `xla_program`. Frozen levels count as though they learned;
  levels that the objective does not run do not count.

  Args:
    config: Config of the run.
  """
  # Blocks in a loop: one of them is traced and counted as often as it runs.
  implementation = dataclasses.replace(
    config.model.implementation, scan_layers=True
  )
  model = dataclasses.replace(config.model, implementation=implementation)
  program = xla_program(dataclasses.replace(config, model=model))
  state = state_shapes(config)
  forward = functools.partial(
    program.model.apply,
    method=program.objective.method,
    mutable=list(state.collections),
    rngs={'byte_dropout': jax.random.key(0)},
  )
  return training_flops(forward, variables_of(state), batch_shapes(config))


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
  return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = _shape(equation.invars[0])
    depth = math.prod(shape[axis] for axis in contracted)
    return 2 * math.prod(_shape(equation.outvars[0])) * depth
  inner = list(_inner_jaxprs(equation))
  flops = list(map(_jaxpr_flops, inner))
  if name == 'cond':
    return max(flops)
  if name == 'scan':
    return params['length'] * sum(flops)
  if name == 'pallas_call':
    if params['cost_estimate'] and any(map(_decides, inner)):
      return params['cost_estimate'].flops
    return math.prod(params['grid_mapping'].grid) * sum(flops)
  return sum(flops)


def _decides(jaxpr: Jaxpr) -> bool:
  """Returns whether running a program decides how many products it computes."""
  for equation in jaxpr.eqns:
    inner = list(_inner_jaxprs(equation))
    flops = set(map(_jaxpr_flops, inner))
    name = equation.primitive.name
    if (name == 'while' and max(flops)) or (name == 'cond' and len(flops) > 1):
      return True
    if any(map(_decides, inner)):
      return True
  return False


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
  """Returns the programs inside a jit, scan, remat, kernel and so on."""
  for value in jax.tree.leaves(
    equation.params, is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))
  ):
    if isinstance(value, ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, Jaxpr):
      yield value


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


# Names of memory statistics, as backends report them, and their tags.
_MEMORY = {
  'bytes_in_use': 'perf/device_memory_bytes',
  'peak_bytes_in_use': 'perf/device_memory_peak_bytes',
}


class DeviceMetrics:
  """Measures of how well the devices of a run are used.

  What is not known of a device is left out: the peak rate of chips that
  `runs.chips` does not list, and memory where a backend does not report it.
  """

  def __init__(
    self, devices: Sequence[jax.Device], count_flops: Callable[[], int]
  ):
    """Looks the devices up.

    Args:
      devices: All devices of the run, of one kind.
      count_flops: Returns the FLOPs of one step of all devices. It takes
        seconds, so it is called only if the peak rate is known.
    """
    process = jax.process_index()
    self._local = next(d for d in devices if d.process_index == process)
    chip = chip_of(self._local.device_kind)
    self._peak = chip.flops_per_second * len(devices) if chip else None
    self._flops = count_flops() if chip else 0

  def tags(self, step_seconds: float | None) -> dict[str, float]:
    """Returns the measures by their names in the metric files.

    Args:
      step_seconds: Mean seconds of the steps since the last call; None if
        unknown.
    """
    tags = {}
    if self._peak and step_seconds:
      rate = self._flops / step_seconds
      tags['perf/model_flops_per_second'] = rate
      tags['perf/model_flops_utilisation'] = rate / self._peak
    # A backend may report no memory statistics, or only some of them.
    memory = self._local.memory_stats() or {}
    return tags | {
      tag: memory[name] for name, tag in _MEMORY.items() if name in memory
    }
