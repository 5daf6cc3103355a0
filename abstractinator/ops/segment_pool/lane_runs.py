"""Maxima and sums over runs of lanes that have the same slot, by rotation."""

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu


def neighbours(slot):
  """Whether the id 1, 2, 4, ... lanes before, or after, has the same slot."""
  ids = slot.shape[1]
  lane = lax.broadcasted_iota(jnp.int32, slot.shape, 1)
  before, after = [], []
  shift = 1
  while shift < ids:
    before.append((pltpu.roll(slot, shift, 1) == slot) & (lane >= shift))
    after.append(
      (pltpu.roll(slot, ids - shift, 1) == slot) & (lane < ids - shift)
    )
    shift *= 2
  return before, after


def running(x, before, join):
  """Joins each number with all before it of its segment."""
  for i, is_same in enumerate(before):
    x = jnp.where(is_same, join(x, pltpu.roll(x, 1 << i, 1)), x)
  return x


def to_all(x, after):
  """Of numbers that do not decrease in a segment, the last, everywhere."""
  for i, is_same in enumerate(after):
    shifted = pltpu.roll(x, x.shape[1] - (1 << i), 1)
    x = jnp.where(is_same, jnp.maximum(x, shifted), x)
  return x
