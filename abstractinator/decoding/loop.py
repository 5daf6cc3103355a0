"""Typed form of `flax.linen.while_loop` for decoding loops."""

from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn

from abstractinator.types import Array

Module = TypeVar('Module', bound=nn.Module)
Carry = TypeVar('Carry')


def while_loop(
  goes_on: Callable[[Carry], Array],
  one_step: Callable[[Module, Carry], Carry],
  module: Module,
  carry: Carry,
) -> Carry:
  """Runs a loop on the device whose body calls a bound module.

  Args:
    goes_on: Condition: maps the carry to [] bool.
    one_step: Body: maps the module and the carry to the next carry.
    module: A bound module; its variables are constants of the loop.
    carry: Initial carry.

  Returns:
    The last carry.
  """
  return nn.while_loop(
    lambda _, carry: goes_on(carry),  # type: ignore[arg-type, return-value]  # Flax declares bool for a traced condition.
    one_step,
    module,
    carry,
  )
