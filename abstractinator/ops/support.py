"""Implementations of an op and their limits; `docs/kernels.md` has them."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from abstractinator.types import Array

PLATFORMS = ('cpu', 'gpu', 'tpu')
NOT_ON_GPU = ('cpu', 'tpu')
TPU_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Implementation:
  """A function that computes an op, its cost, platforms and types.

  Attributes:
    function: The function, with the arguments that the op's `api` says.
    cost: Time and memory of a call, in the dimension letters of `types`.
    note: Method, limits and the reasons for them; Markdown without a full stop
      at its end.
    platforms: Platforms it runs on, out of `PLATFORMS`.
    dtypes: Names of the types of values it takes.
    is_reproducible_on: Platforms on which two calls give the same bits.
  """

  function: Callable[..., Array]
  cost: str
  note: str
  platforms: tuple[str, ...] = PLATFORMS
  dtypes: tuple[str, ...] = ('float32', 'bfloat16', 'float16')
  is_reproducible_on: tuple[str, ...] = PLATFORMS


def kernel(module: str, name: str) -> Callable[..., Array]:
  """Returns a function of a module that is imported at the first call.

  The import of Pallas takes longer than that of all other ops.

  Args:
    module: Dotted name of the module.
    name: Name of the function.
  """

  def function(*args: Any, **kwargs: Any) -> Array:
    return getattr(importlib.import_module(module), name)(*args, **kwargs)

  return function


def supported(
  op: str, table: Mapping[str, Implementation], name: str, *arrays: Array
) -> Callable[..., Array]:
  """Returns the function of an implementation that takes the given arrays.

  Args:
    op: Name of the op, for the message.
    table: Implementations of the op, by name.
    name: Name of the chosen implementation.
    *arrays: Arrays whose types it has to take.

  Raises:
    ValueError: If the table has no such name.
    NotImplementedError: If the implementation does not take a type.
  """
  if name not in table:
    raise ValueError(
      f'implementation: got {name!r}, allowed: {", ".join(table)}'
    )
  allowed = table[name].dtypes
  for x in arrays:
    if x.dtype not in allowed:
      raise NotImplementedError(
        f'{op} by {name!r}: got {x.dtype}, allowed: {", ".join(allowed)}'
      )
  return table[name].function
