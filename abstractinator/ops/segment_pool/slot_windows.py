"""Windows of slots, in which a block of ids finds its own.

A block of ids reaches from the slot of its first id to that of its last: mostly
one window, which is then a product with a one-hot matrix, sometimes more.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

# Ids of a product: a tile of lanes.
BLOCK = 128
# Windows of slots begin at multiples of this: a tile of bfloat16 rows.
ALIGNMENT = 16


def window(slot, first, number, slots_ref):
  """Which slots of a window ids have, and where it lies.

  Args:
    slot: [1, BLOCK] int32 slots of ids.
    first: The smallest of them.
    number: Of the window, from 0; windows follow each other.
    slots_ref: [slots, ...] that the window is of.

  Returns:
    [window, BLOCK] bool, an id's slot is this one, and the rows of the window.
    A window that would reach beyond the end is moved, but its slots are those
    that no window before it had.
  """
  size, total = window_size(slots_ref), slots_ref.shape[0]
  begin = first // ALIGNMENT * ALIGNMENT + number * size
  start = pl.multiple_of(jnp.minimum(begin, total - size), ALIGNMENT)
  here = jnp.where(slot >= begin, slot - start, -1)
  hot = lax.broadcasted_iota(jnp.int32, (size, slot.shape[1]), 0) == here
  return hot, pl.ds(start, size)


def window_size(slots_ref):
  """Slots of a window: those of a block of ids, wherever they begin."""
  return min(BLOCK + ALIGNMENT, slots_ref.shape[0])


def num_windows(first_ref, last_ref, row, index, slots_ref):
  """How many windows a block of ids reaches."""
  begin = first_ref[row, index] // ALIGNMENT * ALIGNMENT
  return (last_ref[row, index] - begin) // window_size(slots_ref) + 1


def is_wide(first_ref, last_ref, row, step, blocks, slots_ref):
  """Whether any block of a step needs more than one window."""
  counts = [
    num_windows(first_ref, last_ref, row, step * blocks + block, slots_ref)
    for block in range(blocks)
  ]
  return functools.reduce(jnp.maximum, counts) > 1
