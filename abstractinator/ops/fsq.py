"""Finite scalar quantization: every dimension rounded to a few levels.

Source: Mentzer et al., arXiv:2309.15505, appendix A.1.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from abstractinator.types import Array

# Keeps the ends of a range off the halves at which rounding jumps.
_MARGIN = 1e-3


def bound(x_M: Array, levels: tuple[int, ...]) -> Array:
  """Squashes numbers so that rounding gives `levels` different integers.

  An even number of levels lies half a step below the middle, shifted so that
  small inputs still are near 0.

  Args:
    x_M: [..., M] float32.
    levels: M of them, each at least 2.

  Returns:
    [..., M] float32; dimension m rounds to -(levels[m] // 2) and up.
  """
  size_M = np.asarray(levels)
  half_M = (size_M - 1) * (1 - _MARGIN) / 2
  offset_M = np.where(size_M % 2 == 1, 0.0, 0.5)
  shift_M = np.tan(offset_M / half_M)
  half_M, offset_M, shift_M = (
    jnp.asarray(x, jnp.float32) for x in (half_M, offset_M, shift_M)
  )
  return jnp.tanh(x_M + shift_M) * half_M - offset_M


def quantize(x_M: Array, levels: tuple[int, ...]) -> tuple[Array, Array]:
  """Rounds bounded numbers, with the gradient of the bounded ones.

  Args:
    x_M: [..., M] float32.
    levels: M of them, each at least 2.

  Returns:
    [..., M] float32 values as of `values`, and [..., M] int32 digits.
  """
  bounded_M = bound(x_M, levels)
  rounded_M = jnp.round(bounded_M)
  middle_M = jnp.asarray([size // 2 for size in levels], jnp.int32)
  straight_M = bounded_M + lax.stop_gradient(rounded_M - bounded_M)
  return straight_M / middle_M, rounded_M.astype(jnp.int32) + middle_M


def values(digits_M: Array, levels: tuple[int, ...]) -> Array:
  """Numbers in -1..1 that digits [..., M] stand for, [..., M] float32."""
  middle_M = jnp.asarray([size // 2 for size in levels], jnp.int32)
  return (digits_M - middle_M).astype(jnp.float32) / middle_M
