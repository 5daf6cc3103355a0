"""Limits of the implementations of an op; `docs/kernels.md` prints them."""

import dataclasses
from collections.abc import Mapping

from abstractinator.types import Array

PLATFORMS = ('cpu', 'gpu', 'tpu')
NOT_ON_GPU = ('cpu', 'tpu')


@dataclasses.dataclass(frozen=True)
class Support:
  """Cost, platforms and types of one implementation of an op.

  Attributes:
    cost: Time and memory of a call, in the dimension letters of `types`.
    note: Method, limits and the reasons for them; Markdown without a full stop
      at its end.
    platforms: Platforms it runs on, out of `PLATFORMS`.
    dtypes: Names of the types of values it takes.
    is_reproducible_on: Platforms on which two calls give the same bits.
  """

  cost: str
  note: str
  platforms: tuple[str, ...] = PLATFORMS
  dtypes: tuple[str, ...] = ('float32', 'bfloat16', 'float16')
  is_reproducible_on: tuple[str, ...] = PLATFORMS


def require_supported(
  op: str, table: Mapping[str, Support], implementation: str, *arrays: Array
) -> None:
  """Checks that an implementation exists and takes the types of the arrays.

  Args:
    op: Name of the op, for the message.
    table: Limits of the op's implementations, by name.
    implementation: Name of the chosen implementation.
    *arrays: Arrays whose types it has to take.

  Raises:
    ValueError: If the table has no such name.
    NotImplementedError: If the implementation does not take a type.
  """
  if implementation not in table:
    raise ValueError(
      f'implementation: got {implementation!r}, allowed: {", ".join(table)}'
    )
  allowed = table[implementation].dtypes
  for x in arrays:
    if x.dtype not in allowed:
      raise NotImplementedError(
        f'{op} by {implementation!r}: got {x.dtype}, allowed:'
        f' {", ".join(allowed)}'
      )
