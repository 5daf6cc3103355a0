"""Floating point operations of a function, counted in its jaxpr.

XLA's own count takes the body of a loop once, whatever its length.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


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
