"""Finite scalar quantization: every dimension is rounded to a few levels.

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

  An even number of levels lies half a step below the middle. The input is
  shifted so that 0 still gives about 0.

  Args:
    x_M: Numbers, [..., M] float32.
    levels: Number of levels of each dimension, M of them, each at least 2.

  Returns:
    [..., M] float32; dimension m rounds to -(levels[m] // 2) and up.
  """
  size_M = np.asarray(levels)
  half_M = (size_M - 1) * (1 - _MARGIN) / 2
  offset_M = np.where(size_M % 2 == 1, 0.0, 0.5)
  shift_M = jnp.asarray(np.tan(offset_M / half_M), jnp.float32)
  scale_M = jnp.asarray(half_M, jnp.float32)
  return jnp.tanh(x_M + shift_M) * scale_M - jnp.asarray(offset_M, jnp.float32)


def quantize(x_M: Array, levels: tuple[int, ...]) -> tuple[Array, Array]:
  """Rounds bounded numbers; gradients pass as if they were not rounded.

  Args:
    x_M: Numbers, [..., M] float32.
    levels: Number of levels of each dimension, M of them, each at least 2.

  Returns:
    The values that `values` gives for the digits, [..., M] float32, and the
    digits, [..., M] int32.
  """
  bounded_M = bound(x_M, levels)
  rounded_M = jnp.round(bounded_M)
  middle_M = jnp.asarray([size // 2 for size in levels], jnp.int32)
  straight_M = bounded_M + lax.stop_gradient(rounded_M - bounded_M)
  return straight_M / middle_M, rounded_M.astype(jnp.int32) + middle_M


def values(digits_M: Array, levels: tuple[int, ...]) -> Array:
  """Returns the numbers in -1..1 that digits stand for, [..., M] float32."""
  middle_M = jnp.asarray([size // 2 for size in levels], jnp.int32)
  return (digits_M - middle_M).astype(jnp.float32) / middle_M
