"""Changes of shape that implementations of attention share.

In shapes, n is the number of blocks of ids of a row, and X any width.
"""

import jax.numpy as jnp

from abstractinator.types import Array


def pad_ids(x_BS: Array, multiple: int, fill: int = 0) -> Array:
  """Returns [B, S, ...] with S padded at its end to a multiple.

  Args:
    x_BS: [B, S, ...] array.
    multiple: Divisor of the padded S.
    fill: Value of the padding; groups are padded with -1, which is no group.
  """
  pad = ((0, 0), (0, -x_BS.shape[1] % multiple)) + ((0, 0),) * (x_BS.ndim - 2)
  return jnp.pad(x_BS, pad, constant_values=fill)


def in_blocks(x_BS: Array, block: int, fill: int = 0) -> Array:
  """Returns [B, S, ...] as [B, n, block, ...], padded at the end of S."""
  x_BS = pad_ids(x_BS, block, fill)
  return x_BS.reshape(x_BS.shape[0], -1, block, *x_BS.shape[2:])


def repeat_heads(x_BSGX: Array, heads: int) -> Array:
  """Returns [B, S, G, X] as [B, S, H, X]; a single shared head is copied."""
  return jnp.broadcast_to(x_BSGX, (*x_BSGX.shape[:2], heads, x_BSGX.shape[3]))
