"""Rows of a table, whose gradient is a sum over all that took the same row."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array

# Rows of a table up to which a product is taken: it is as wide as there are
# rows, and the fewer they are, the more wait to add to each. To add to 259 and
# to 32 rows in bfloat16 took up to 100 and 255 ms of a step on an H200, which
# takes 148 ms with products.
_FEW_ROWS = 1024


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def take_rows(table_KD: Array, index: Array, dtype: jnp.dtype) -> Array:
  """Rows of a table.

  Ids repeat: of a batch of bytes, tens of thousands take the same row. Their
  gradients are added up in float32, whatever type they come in; on an
  accelerator, where adding to few rows is slow, by a product, which holds the
  indices one-hot, [..., K] of the type of the gradients. There a gradient that
  is no number makes its column of the whole table none. In reverse mode only.

  Args:
    table_KD: [K, D].
    index: [...] integers in 0..K-1; rows from K on are NaN, negative ones are
      not allowed.
    dtype: Of the result.

  Returns:
    [..., D].
  """
  return jnp.take(table_KD, index, axis=0).astype(dtype)


def _forward(table_KD, index, dtype):
  return take_rows(table_KD, index, dtype), (table_KD, index)


def _backward(dtype, residuals, grad):
  del dtype
  table_KD, index = residuals
  rows = len(table_KD)
  add = functools.partial(add_rows, rows=rows)
  if rows > _FEW_ROWS:
    total_KD = add(index, grad)
  else:
    multiply = functools.partial(multiply_rows, rows=rows)
    total_KD = lax.platform_dependent(index, grad, cpu=add, default=multiply)
  return total_KD.astype(table_KD.dtype), None


take_rows.defvjp(_forward, _backward)


def add_rows(index: Array, x: Array, rows: int) -> Array:
  """Sums of vectors by index: [...] and [..., D] to [rows, D] float32."""
  zeros_KD = jnp.zeros((rows, x.shape[-1]), jnp.float32)
  return zeros_KD.at[index].add(x.astype(jnp.float32))


def multiply_rows(index: Array, x: Array, rows: int) -> Array:
  """`add_rows` as a product with the indices, one-hot."""
  axes = tuple(range(index.ndim))
  return jnp.tensordot(
    jax.nn.one_hot(index, rows, dtype=x.dtype),
    x,
    (axes, axes),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
