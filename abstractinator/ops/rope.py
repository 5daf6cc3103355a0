"""Rotary position embedding.

Source: Su et al., RoFormer, arXiv:2104.09864, equation 34.
"""

import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array


def rope_table(
  position_T: Array, width: int, *, base: float = 10_000.0
) -> tuple[Array, Array]:
  """Returns cosines and sines of the rotation angles of positions.

  The angle of pair i is position * base ** (-2 i / width).

  Args:
    position_T: [...] integer positions, of any size.
    width: Even width A of the vectors to rotate.
    base: Sets the angles per position, which fall from 1 radian for the first
      pair to nearly 1 / base radians for the last.

  Returns:
    Cosines and sines, [..., A/2] float32 each.
  """
  frequency = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = position_T[..., None].astype(jnp.float32) * frequency
  # Without the barrier XLA computes each angle anew for every row and head.
  return lax.optimization_barrier((jnp.cos(angle), jnp.sin(angle)))


def rotate(x_BTHA: Array, table: tuple[Array, Array]) -> Array:
  """Rotates each pair (i, i + A/2) of the last axis by its position's angle.

  Args:
    x_BTHA: [B, T, H, A] vectors of any float type.
    table: Cosines and sines from `rope_table`, [T, A/2] or [B, T, A/2] each.

  Returns:
    [B, T, H, A] of the type of `x_BTHA`; the rotation is done in float32.
  """
  cos, sin = (t[..., None, :] for t in table)
  a, b = jnp.split(x_BTHA.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
  return rotated.astype(x_BTHA.dtype)
