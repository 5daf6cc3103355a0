"""Segment cross-attention of a query that sees one row."""

import jax.numpy as jnp

from abstractinator.ops.segment_cross.fetch import fetch_rows
from abstractinator.types import Array


def lookup(v_BPGE: Array, index_BT: Array) -> Array:
  """The value of each query's own slot, whose weight is 1 whatever its score.

  Args:
    v_BPGE: [B, P, G, E] values, one a slot.
    index_BT: [B, T] int32 slots; outside 0..P-1 for none.

  Returns:
    [B, T, G, E]; zeros for a query without slot.
  """
  has_slot_BT = (index_BT >= 0) & (index_BT < v_BPGE.shape[1])
  slot_BT = jnp.clip(index_BT, 0, v_BPGE.shape[1] - 1)
  out = fetch_rows(v_BPGE, slot_BT)
  return jnp.where(has_slot_BT[..., None, None], out, 0)
