"""Which blocks of a row can have something to see in each other."""

import jax.numpy as jnp

from abstractinator.types import Array


def visible_blocks(
  group_BS: Array, block: int, window: int | None
) -> tuple[Array, Array]:
  """Bounds what attention has to look at, by groups and window.

  Args:
    group_BS: [B, S] int32, S a multiple of the block.
    block: Ids of a block.
    window: How many ids before itself an id sees; None for all.

  Returns:
    The first block that each block may see, and the last that may see it,
    [B, S / block] int32. Each may see itself; between the two there may be
    blocks that have nothing to see in it.
  """
  index = jnp.arange(group_BS.shape[1] // block)
  group = group_BS.reshape(group_BS.shape[0], -1, block)
  lowest = jnp.min(
    jnp.where(group >= 0, group, jnp.iinfo(jnp.int32).max), axis=-1
  )
  highest = jnp.max(group, axis=-1)
  distance = index[:, None] - index[None, :]
  reach = len(index) if window is None else -(-window // block)
  # A block all of whose groups are smaller is not seen. Documents and segments
  # do not decrease: where they do, more is looked at and the same is seen.
  sees = (highest[:, None, :] >= lowest[:, :, None]) & (distance >= 0)
  sees = (sees & (distance <= reach)) | (distance == 0)
  first = jnp.argmax(sees, axis=2)
  last = len(index) - 1 - jnp.argmax(sees[:, ::-1], axis=1)
  return first.astype(jnp.int32), last.astype(jnp.int32)
