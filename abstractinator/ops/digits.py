"""Composed codes and their digits.

A code of M stages is one number in a mixed radix: the digit of stage 0 counts
least. Special ids come after the last code and have no digits.
"""

import math

import jax.numpy as jnp

from abstractinator.types import Array


def place_values(sizes: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the worth of one unit of each digit, [M]."""
  return tuple(math.prod(sizes[:stage]) for stage in range(len(sizes)))


def compose(digits_M: Array, sizes: tuple[int, ...]) -> Array:
  """Composes codes from digits.

  `jnp.ravel_multi_index` does the same, but the first digit counts most there.

  Args:
    digits_M: Digit m in 0..sizes[m]-1, [..., M] int32.
    sizes: Number of values of each digit, M of them.

  Returns:
    [...] int32 in 0..prod(sizes)-1.
  """
  values_M = jnp.asarray(place_values(sizes), jnp.int32)
  return jnp.sum(digits_M.astype(jnp.int32) * values_M, axis=-1)


def decompose(codes: Array, sizes: tuple[int, ...]) -> Array:
  """Returns the digits of codes, the inverse of `compose`.

  Args:
    codes: Composed codes, [...] int32 in 0..prod(sizes)-1.
    sizes: Number of values of each digit, M of them.

  Returns:
    [..., M] int32.
  """
  digits = [
    codes.astype(jnp.int32) // value % size
    for value, size in zip(place_values(sizes), sizes, strict=True)
  ]
  return jnp.stack(digits, axis=-1)
