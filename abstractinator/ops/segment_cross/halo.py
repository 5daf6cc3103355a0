"""Segment cross-attention by blocks of queries and the slots around them."""

import jax
import jax.numpy as jnp

from abstractinator.ops.attention.shapes import in_blocks
from abstractinator.ops.segment_cross.fetch import fetch_slices
from abstractinator.types import Array

# Queries of a block: a tile of a matrix unit.
_BLOCK = 128


def segment_cross_attention(
  q_BTHA: Array,
  k_BUGA: Array,
  v_BUGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
  rows_per_slot: int,
) -> Array:
  """Attends as `api.segment_cross_attention`.

  If the slot rises by at most one from a query to the next, the 128 queries of
  a block see at most 128 + `lookback` consecutive slots: one slice of keys and
  one of values. A query gets zeros if its slot is before the first slot of its
  block, or 128 slots or more after it. That does not happen to ids in order,
  whose segments are numbered one by one; ids without a slot may be anywhere.
  """
  batch, queries, heads, _ = q_BTHA.shape
  slots = v_BUGE.shape[1] // rows_per_slot
  block = min(_BLOCK, queries)
  window = min(block + lookback, slots)
  index, lowest = in_blocks(index_BT, block, -1), in_blocks(lowest_BT, block)
  has_slot = (index >= 0) & (index < slots)
  first = jnp.take_along_axis(
    index, jnp.argmax(has_slot, axis=2)[..., None], axis=2
  )
  start = jnp.clip(first - lookback, 0, slots - window)  # [B, blocks, 1]

  def sliced(x_BU: Array) -> Array:
    starts = start[..., 0] * rows_per_slot
    x = fetch_slices(x_BU, starts, window * rows_per_slot)
    # A head that all heads share has no dimension of heads.
    return x[:, :, :, 0] if x.shape[3] < heads else x

  slot = start + jnp.arange(window * rows_per_slot) // rows_per_slot
  slot = slot[:, :, None]  # [B, blocks, 1, rows of the window]
  index, lowest = index[..., None], lowest[..., None]
  is_near = (index >= first[..., None]) & (index < first[..., None] + block)
  sees = (slot <= index) & (slot >= index - lookback) & (slot >= lowest)
  sees = (sees & is_near & has_slot[..., None])[:, :, None]
  key, value = sliced(k_BUGA), sliced(v_BUGE)
  score = scale * jnp.einsum(
    f'bnthd,{"bnuhd" if key.ndim == 5 else "bnud"}->bnhtu',
    in_blocks(q_BTHA, block),
    key,
    preferred_element_type=jnp.float32,
  )
  weight = jax.nn.softmax(score, where=sees)
  out = jnp.einsum(
    f'bnhtu,{"bnuhe" if value.ndim == 5 else "bnue"}->bnthe',
    weight.astype(v_BUGE.dtype),
    value,
    preferred_element_type=jnp.float32,
  )
  out = out.reshape(batch, -1, heads, out.shape[-1])[:, :queries]
  return out.astype(v_BUGE.dtype)
