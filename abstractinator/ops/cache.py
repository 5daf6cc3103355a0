"""Keys and values kept for ids to come, one new id a row and step.

A cache has W slots, which it fills in turn and then over again: with W one more
than the window of a stack, what it holds is what the next id may see. A stack
without window needs as many slots as a row will ever have ids.
"""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from abstractinator.types import Array


@flax.struct.dataclass
class KeyValues:
  """Keys and values of one layer, by slot.

  Heads before slots: of each head, what a row holds lies side by side, which
  makes attention to it a plain product.

  Attributes:
    key_BGWA: [B, G, W, A], rotated to their positions.
    value_BGWE: [B, G, W, E]; its G may differ from that of the keys.
  """

  key_BGWA: Array
  value_BGWE: Array


@flax.struct.dataclass
class Cache:
  """What a stack remembers of each row.

  Attributes:
    layers: One for each layer.
    group_BW: [B, W] int32, group of the id in each slot; -1 for none.
    length_B: [B] int32, ids of the row so far.
  """

  layers: tuple[KeyValues, ...]
  group_BW: Array
  length_B: Array


@flax.struct.dataclass
class Step:
  """Where the ids of a step go and what they see, the same in every layer.

  Attributes:
    position_B: [B] int32, position of the id in its row.
    slot_B: [B] int32, slot that takes it; W for an id that is not kept.
    sees_BW: [B, W] bool, slots that it sees, its own included.
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
  """A cache that holds nothing.

  Args:
    batch_size: B.
    slots: W.
    widths: (G, A) of the keys and (G, E) of the values.
    num_layers: How many layers share the rows.
    dtype: Of keys and values.

  Returns:
    The cache.
  """

  def layer():
    # Of its own: an array that stands twice in a cache cannot be donated.
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
  """The cache after the ids of whole rows, with nothing of before.

  Args:
    cache: Gives the number of slots and the type.
    layers: Keys and values by position, [B, S, G, A] and [B, S, G, E].
    group_BS: [B, S] int32, -1 on padding, which only ends a row.

  Returns:
    The cache, with the last W ids of each row.
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
  """Group of the last id of each row, [B] int32; -1 before the first."""
  # The slot before the first is one of an empty cache, which says -1.
  slot_B = (cache.length_B - 1) % cache.group_BW.shape[1]
  return jnp.take_along_axis(cache.group_BW, slot_B[:, None], axis=1)[:, 0]


def advance(
  cache: Cache, group_B: Array, active_B: Array
) -> tuple[Cache, Step]:
  """Makes room for one id a row.

  Args:
    cache: Before the step.
    group_B: [B] int32, group of each id; it sees earlier ids of the same.
    active_B: [B] bool, rows that have an id; the others stay as they are.

  Returns:
    The cache, to whose layers the ids are still to be written, and the step.
  """
  slots = cache.group_BW.shape[1]
  slot_B = jnp.where(active_B, cache.length_B % slots, slots)
  row_B = jnp.arange(slot_B.shape[0])
  group_BW = cache.group_BW.at[row_B, slot_B].set(group_B, mode='drop')
  step = Step(
    position_B=cache.length_B,
    slot_B=slot_B,
    sees_BW=(group_BW == group_B[:, None]) & (group_BW >= 0),
  )
  length_B = cache.length_B + active_B
  return cache.replace(group_BW=group_BW, length_B=length_B), step


def write(
  layer: KeyValues, key_BGA: Array, value_BGE: Array, step: Step
) -> KeyValues:
  """Puts the keys and values of a step into their slots."""
  row_B = jnp.arange(step.slot_B.shape[0])

  def put(x_BGWA, new_BGA):
    return x_BGWA.at[row_B, :, step.slot_B].set(
      new_BGA.astype(x_BGWA.dtype), mode='drop', unique_indices=True
    )

  return KeyValues(
    put(layer.key_BGWA, key_BGA), put(layer.value_BGWE, value_BGE)
  )
