"""KV cache of a stack of attention layers, for decoding one id a row at a time.

A cache is a ring of W slots. With W one more than the window of the stack, the
slots hold just what the next id may see. A stack without a window needs as many
slots as a row will ever have ids.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from abstractinator.types import Array


@flax.struct.dataclass
class KeyValues:
  """Keys and values of one layer, by slot.

  Heads come before slots: all that a row holds of one head is contiguous, which
  makes attention to it a plain matrix product.

  Attributes:
    key_BGWA: [B, G, W, A] keys, rotated to their positions.
    value_BGWE: [B, G, W, E] values; G may differ from that of the keys.
  """

  key_BGWA: Array
  value_BGWE: Array


@flax.struct.dataclass
class Cache:
  """Keys and values of all layers of a stack, with the groups of their ids.

  Attributes:
    layers: Keys and values, one entry per layer.
    group_BW: [B, W] int32, group of the id in each slot; -1 for an empty slot.
    length_B: [B] int32, number of ids that the row has had so far.
  """

  layers: tuple[KeyValues, ...]
  group_BW: Array
  length_B: Array


@flax.struct.dataclass
class CacheStep:
  """Place and visible slots of one new id per row, shared by all layers.

  Attributes:
    position_B: [B] int32, position of the new id in its row.
    slot_B: [B] int32, slot that takes the new id; W for an id that is dropped.
    sees_BW: [B, W] bool, slots that the new id sees, its own included.
  """

  position_B: Array
  slot_B: Array
  sees_BW: Array


def empty_cache(
  batch_size: int,
  slots: int,
  widths: tuple[tuple[int, int], tuple[int, int]],
  num_layers: int,
  dtype: jnp.dtype,
) -> Cache:
  """Returns a cache without ids.

  Args:
    batch_size: Number of rows B.
    slots: Number of slots W.
    widths: Heads and width of the keys (G, A), and of the values (G, E).
    num_layers: Number of layers of the stack.
    dtype: Type of keys and values.
  """

  def layer():
    # New arrays for each layer: one that stands twice cannot be donated.
    return KeyValues(
      *(jnp.zeros((batch_size, g, slots, a), dtype) for g, a in widths)
    )

  return Cache(
    layers=tuple(layer() for _ in range(num_layers)),
    group_BW=jnp.full((batch_size, slots), -1, jnp.int32),
    length_B=jnp.zeros(batch_size, jnp.int32),
  )


def fill(
  cache: Cache, layers: Sequence[tuple[Array, Array]], group_BS: Array
) -> Cache:
  """Returns a cache of the last W ids of whole rows.

  Args:
    cache: Cache of the same shape, of which only the number of slots and the
      types are read.
    layers: Keys [B, S, G, A] and values [B, S, G, E] by position, one pair per
      layer.
    group_BS: [B, S] int32, group of each id; -1 on padding, which only ends a
      row.
  """
  slots = cache.group_BW.shape[1]
  length_B = jnp.sum(group_BS >= 0, axis=1, dtype=jnp.int32)
  last_B1 = length_B[:, None] - 1
  # The last position of the row that fell on each slot.
  position_BW = last_B1 - (last_B1 - jnp.arange(slots)) % slots
  is_held_BW = position_BW >= 0
  row_B1 = jnp.arange(group_BS.shape[0])[:, None]
  from_BW = jnp.where(is_held_BW, position_BW, 0)

  def held(x_BSGA, old_BGWA):
    taken = jnp.where(is_held_BW[..., None, None], x_BSGA[row_B1, from_BW], 0)
    return jnp.swapaxes(taken, 1, 2).astype(old_BGWA.dtype)

  return Cache(
    layers=tuple(
      KeyValues(held(key, old.key_BGWA), held(value, old.value_BGWE))
      for (key, value), old in zip(layers, cache.layers, strict=True)
    ),
    group_BW=jnp.where(is_held_BW, group_BS[row_B1, from_BW], -1),
    length_B=length_B,
  )


def last_group(cache: Cache) -> Array:
  """Returns the group of the last id of each row, [B] int32; -1 if none."""
  # Before the first id this is slot W - 1, which is empty and says -1.
  slot_B = (cache.length_B - 1) % cache.group_BW.shape[1]
  return jnp.take_along_axis(cache.group_BW, slot_B[:, None], axis=1)[:, 0]


def advance(
  cache: Cache, group_B: Array, active_B: Array
) -> tuple[Cache, CacheStep]:
  """Returns the cache with a slot for one more id per row, and that step.

  Groups and lengths of the returned cache are up to date; the keys and values
  of the new ids are still to be put into its layers by `write`.

  Args:
    cache: Cache before the step.
    group_B: [B] int32, group of each new id; it sees earlier ids of its group.
    active_B: [B] bool, rows that have a new id; other rows stay as they are.
  """
  slots = cache.group_BW.shape[1]
  slot_B = jnp.where(active_B, cache.length_B % slots, slots)
  row_B = jnp.arange(slot_B.shape[0])
  group_BW = cache.group_BW.at[row_B, slot_B].set(group_B, mode='drop')
  step = CacheStep(
    position_B=cache.length_B,
    slot_B=slot_B,
    sees_BW=(group_BW == group_B[:, None]) & (group_BW >= 0),
  )
  length_B = cache.length_B + active_B
  return dataclasses.replace(cache, group_BW=group_BW, length_B=length_B), step


def write(
  layer: KeyValues, key_BGA: Array, value_BGE: Array, step: CacheStep
) -> KeyValues:
  """Returns the layer with the keys and values of a step in their slots.

  Args:
    layer: Keys and values of earlier ids.
    key_BGA: [B, G, A] keys of the new ids, rotated to their positions.
    value_BGE: [B, G, E] values of the new ids.
    step: Slots of the new ids, from `advance`.
  """
  row_B = jnp.arange(step.slot_B.shape[0])

  def put(x_BGWA, new_BGA):
    return x_BGWA.at[row_B, :, step.slot_B].set(
      new_BGA.astype(x_BGWA.dtype), mode='drop', unique_indices=True
    )

  return KeyValues(
    put(layer.key_BGWA, key_BGA), put(layer.value_BGWE, value_BGE)
  )
