"""Fetches rows of a memory, and adds up their gradients in float32."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array


def _summed_in_float32(
  fetch: Callable[..., Array],
) -> Callable[..., Array]:
  """A row that many fetch gets many gradients: too many for bfloat16."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
  def fetch_rows(x_BUX, index, size=None):
    return fetch(x_BUX, index, size)

  def forward(x_BUX, index, size):
    return fetch(x_BUX, index, size), (x_BUX, index)

  def backward(size, residuals, grad):
    x_BUX, index = residuals
    _, pullback = jax.vjp(
      lambda x: fetch(x, index, size), x_BUX.astype(jnp.float32)
    )
    return pullback(grad.astype(jnp.float32))[0].astype(x_BUX.dtype), None

  fetch_rows.defvjp(forward, backward)
  return fetch_rows


@_summed_in_float32
def _rows(x_BUX, row_BT, size):
  del size
  return jax.vmap(lambda x, i: x[i])(x_BUX, row_BT)


@_summed_in_float32
def _slices(x_BUX, start_BN, size):
  def of_row(x, starts):
    return jax.vmap(lambda i: lax.dynamic_slice_in_dim(x, i, size))(starts)

  return jax.vmap(of_row)(x_BUX, start_BN)


def fetch_rows(x_BUX: Array, row_BT: Array) -> Array:
  """[B, T, ...] rows of [B, U, ...]; `row_BT` is in 0..U-1."""
  return _rows(x_BUX, row_BT, None)


def fetch_slices(x_BUX: Array, start_BN: Array, size: int) -> Array:
  """[B, N, size, ...] runs of rows of [B, U, ...], from 0..U-size on."""
  return _slices(x_BUX, start_BN, size)
