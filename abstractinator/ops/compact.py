"""Compaction of rows: gaps are taken out, repeated entries are found."""

import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array


def compact(ids_BS: Array, is_kept_BS: Array) -> tuple[Array, Array]:
  """Moves the ids that are kept to the front of their row, in order.

  Args:
    ids_BS: Ids with gaps, [B, S] int32.
    is_kept_BS: True for ids that are kept, [B, S] bool.

  Returns:
    The ids, [B, S] int32, 0 behind the last one kept, and how many are kept,
    [B] int32.
  """
  size = ids_BS.shape[1]
  at_BS = jnp.cumsum(is_kept_BS, axis=1, dtype=jnp.int32) - 1
  at_BS = jnp.where(is_kept_BS, at_BS, size)
  row_B1 = jnp.arange(ids_BS.shape[0])[:, None]
  packed_BS = jnp.zeros_like(ids_BS).at[row_B1, at_BS].set(ids_BS, mode='drop')
  return packed_BS, jnp.sum(is_kept_BS, axis=1, dtype=jnp.int32)


def first_equal(keys_BPX: Array) -> Array:
  """Finds the first slot of the row that has the same keys, for each slot.

  It sorts, in time P log P. `jnp.unique` compares whole arrays, not the slots
  of each row.

  Args:
    keys_BPX: Keys of each slot, [B, P, X] integers; X is their number.

  Returns:
    [B, P] int32, at most the slot itself.
  """
  batch, slots, width = keys_BPX.shape
  slot_P = jnp.arange(slots, dtype=jnp.int32)
  slot_BP = jnp.broadcast_to(slot_P, (batch, slots))
  operands = [*jnp.moveaxis(keys_BPX, -1, 0), slot_BP]
  # The slot is a key too: of equal ones the first comes first.
  *sorted_keys, order_BP = lax.sort(operands, num_keys=width + 1)
  differs_BP = jnp.zeros((batch, slots), bool).at[:, 0].set(True)
  for key_BP in sorted_keys:
    differs_BP = differs_BP.at[:, 1:].max(key_BP[:, 1:] != key_BP[:, :-1])
  begin_BP = lax.cummax(jnp.where(differs_BP, slot_P, 0), axis=1)
  first_BP = jnp.take_along_axis(order_BP, begin_BP, axis=1)
  row_B1 = jnp.arange(batch)[:, None]
  return (
    jnp.zeros_like(slot_BP)
    .at[row_B1, order_BP]
    .set(first_BP, unique_indices=True)
  )
