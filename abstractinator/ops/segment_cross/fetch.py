"""Fetches rows of keys and values; their gradients are summed in float32."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def fetch_slices(x_BUX: Array, start_BN: Array, size: int) -> Array:
  """Fetches runs of rows.

  A row that many queries fetch gets many gradients: too many to be added up in
  bfloat16.

  Args:
    x_BUX: Rows, [B, U, ...]; X is all dimensions of a row.
    start_BN: First row of each run, [B, N] int32 in 0..U-size; N is the number
      of runs.
    size: Number of rows of a run.

  Returns:
    [B, N, size, ...].
  """
  return _fetch(x_BUX, start_BN, size)


def _fetch(x_BUX: Array, start_BN: Array, size: int) -> Array:
  def of_row(x: Array, starts: Array) -> Array:
    return jax.vmap(lambda i: lax.dynamic_slice_in_dim(x, i, size))(starts)

  return jax.vmap(of_row)(x_BUX, start_BN)


def _forward(
  x_BUX: Array, start_BN: Array, size: int
) -> tuple[Array, tuple[Array, Array]]:
  return _fetch(x_BUX, start_BN, size), (x_BUX, start_BN)


def _backward(
  size: int, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, None]:
  x_BUX, start_BN = saved
  _, pullback = jax.vjp(
    lambda x: _fetch(x, start_BN, size), x_BUX.astype(jnp.float32)
  )
  return pullback(grad.astype(jnp.float32))[0].astype(x_BUX.dtype), None


fetch_slices.defvjp(_forward, _backward)


def fetch_rows(x_BUX: Array, row_BT: Array) -> Array:
  """Fetches the rows `row_BT`, which are in 0..U-1: [B, T, ...]."""
  return fetch_slices(x_BUX, row_BT, 1)[:, :, 0]


def lookup(v_BPGE: Array, index_BT: Array) -> Array:
  """Fetches the value of each query's own slot, whose weight is always 1.

  Args:
    v_BPGE: Values, one per slot, [B, P, G, E].
    index_BT: Slot of each query, [B, T] int32; outside 0..P-1 for none.

  Returns:
    [B, T, G, E]; zeros for a query without slot.
  """
  has_slot_BT = (index_BT >= 0) & (index_BT < v_BPGE.shape[1])
  slot_BT = jnp.clip(index_BT, 0, v_BPGE.shape[1] - 1)
  out = fetch_rows(v_BPGE, slot_BT)
  return jnp.where(has_slot_BT[..., None, None], out, 0)
