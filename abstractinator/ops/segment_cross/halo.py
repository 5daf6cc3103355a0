"""Segment cross-attention by blocks of queries and the slots around them."""

import jax.numpy as jnp
from jax import lax

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
  """See `api.segment_cross_attention`.

  Where the slot rises by at most one from a query to the next, 128 of them see
  128 + `lookback` slots in a row at most: one slice of keys and of values.
  From the first slot of a block, a query that is 128 slots or more away, or
  before it, gets zeros. So does no query of ids in order, whose segments are
  numbered one by one; ids without a slot may stand anywhere.
  """
  batch, queries, heads, _ = q_BTHA.shape
  rows = v_BUGE.shape[1]
  slots = rows // rows_per_slot
  has_slot_BT = (index_BT >= 0) & (index_BT < slots)
  block = min(_BLOCK, queries)
  window = min(block + lookback, slots)

  def in_blocks(x_BT, fill=0):  # [B, blocks, block, ...]
    pad = [(0, 0), (0, -queries % block)] + [(0, 0)] * (x_BT.ndim - 2)
    x = jnp.pad(x_BT, pad, constant_values=fill)
    return x.reshape(batch, -1, block, *x_BT.shape[2:])

  index, lowest = in_blocks(index_BT, -1), in_blocks(lowest_BT)
  has_slot = in_blocks(has_slot_BT, False)
  first = jnp.take_along_axis(
    index, jnp.argmax(has_slot, axis=2)[..., None], axis=2
  )
  start = jnp.clip(first - lookback, 0, slots - window)  # [B, blocks, 1]

  def sliced(x_BU):
    starts = start[..., 0] * rows_per_slot
    x = fetch_slices(x_BU, starts, window * rows_per_slot)
    # What all heads share has no dimension of heads.
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
    in_blocks(q_BTHA),
    key,
    preferred_element_type=jnp.float32,
  )
  score = jnp.where(sees, score, -jnp.inf)
  largest = lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight /= jnp.where(total > 0, total, 1.0)
  out = jnp.einsum(
    f'bnhtu,{"bnuhe" if value.ndim == 5 else "bnue"}->bnthe',
    weight.astype(v_BUGE.dtype),
    value,
    preferred_element_type=jnp.float32,
  )
  out = out.reshape(batch, -1, heads, out.shape[-1])[:, :queries]
  return out.astype(v_BUGE.dtype)
