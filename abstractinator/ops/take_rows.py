"""Lookup of table rows, whose gradient sums over all that took the same row."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array

# Rows of a table up to which the gradient is a product. The time of a product
# grows with the rows; that of additions grows as rows get fewer, since more of
# them wait for the same row. To add to 259 and to 32 rows in bfloat16 took up
# to 100 and 255 ms of a step on an H200, which takes 148 ms with products.
FEW_ROWS = 1024


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def take_rows(table_KD: Array, index: Array, dtype: jnp.dtype) -> Array:
  """Takes rows of a table.

  Ids repeat: in a batch of bytes, tens of thousands take the same row. Their
  gradients are added up in float32, whatever their type. On an accelerator,
  where additions to few rows are slow, the sum is a product with the one-hot
  indices, [..., K] of the type of the gradients; there a NaN in a gradient
  makes its column NaN in all rows of the table. Only reverse-mode derivatives
  are defined.

  Args:
    table_KD: Table with K rows, [K, D].
    index: Row to take, [...] integers in 0..K-1; from K on the result is NaN,
      negative ones are not allowed.
    dtype: Type of the result.

  Returns:
    [..., D].
  """
  return jnp.take(table_KD, index, axis=0).astype(dtype)


def _forward(
  table_KD: Array, index: Array, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array]]:
  return take_rows(table_KD, index, dtype), (table_KD, index)


def _backward(
  dtype: jnp.dtype, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, None]:
  del dtype
  table_KD, index = saved
  rows = len(table_KD)
  add = functools.partial(add_rows, rows=rows)
  if rows > FEW_ROWS:
    total_KD = add(index, grad)
  else:
    multiply = functools.partial(multiply_rows, rows=rows)
    total_KD = lax.platform_dependent(index, grad, cpu=add, default=multiply)
  return total_KD.astype(table_KD.dtype), None


take_rows.defvjp(_forward, _backward)


def add_rows(index: Array, x: Array, rows: int) -> Array:
  """Sums vectors by index: [...] and [..., D] to [rows, D] float32."""
  zeros_KD = jnp.zeros((rows, x.shape[-1]), jnp.float32)
  return zeros_KD.at[index].add(x.astype(jnp.float32))


def multiply_rows(index: Array, x: Array, rows: int) -> Array:
  """Computes `add_rows` as a product with the one-hot indices."""
  axes = tuple(range(index.ndim))
  return jnp.tensordot(
    jax.nn.one_hot(index, rows, dtype=x.dtype),
    x,
    (axes, axes),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
