"""Ids from codes, side by side, of every sight of codes once."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.modules.expander_lanes import decode_segments
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops.first_alike import first_alike
from abstractinator.ops.shards import num_row_shards
from abstractinator.types import Array


def decode_codes(
  expander: nn.Module,
  lookup: Callable[[Array], Array],
  codes_BU: Array,
  is_valid_BP: Array,
  lowest_BP: Array,
  codebooks: Codebooks | None = None,
) -> tuple[Array, Array]:
  """Greedy ids of segments.

  Of segments of a row that see the same codes, which become the same ids, one
  is decoded. With a lookback of 0, where a segment sees its own codes only, of
  all rows that a device has. With another one, scores depend on positions of
  codes, rounded as the compute type is: in bfloat16 it may matter which one.

  Args:
    expander: With `context='segment'` and `ends='head'`.
    lookup: Codes to their vectors, [..., D].
    codes_BU: [B, U] int32, those of a slot side by side.
    is_valid_BP: [B, P] bool, slots with a segment.
    lowest_BP: [B, P] int32, first slot that each segment may see.
    codebooks: See `Vocabulary`.

  Returns:
    See `decode_segments`.
  """
  batch, slots = is_valid_BP.shape
  lookback = expander.config.expander.lookback
  groups = batch if lookback else num_row_shards(batch)
  # Rows of a group become one row, so its slots count on.
  begin_B = slots * (jnp.arange(batch) % (batch // groups))
  codes_GU, is_valid_GP, lowest_GP = (
    x.reshape(groups, -1)
    for x in (codes_BU, is_valid_BP, lowest_BP + begin_B[:, None])
  )
  seen_GPK = codes_in_sight(codes_GU, lowest_GP, lookback)
  # An empty slot, which holds some code, is like none with a segment.
  first_GP = first_alike(jnp.where(is_valid_GP[..., None], seen_GPK, -2))
  is_first_GP = first_GP == jnp.arange(first_GP.shape[1])
  ids_GPL, length_GP = decode_segments(
    expander,
    lookup(codes_GU),
    is_valid_GP & is_first_GP,
    lowest_GP,
    codebooks,
  )
  group_G1 = jnp.arange(groups)[:, None]
  return (
    ids_GPL[group_G1, first_GP].reshape(batch, slots, -1),
    jnp.where(is_valid_GP, length_GP[group_G1, first_GP], 0).reshape(
      batch, slots
    ),
  )


def codes_in_sight(codes_BU: Array, lowest_BP: Array, lookback: int) -> Array:
  """What each segment sees, as keys.

  Args:
    codes_BU: [B, U] int32, those of a slot side by side.
    lowest_BP: [B, P] int32, first slot that each segment may see.
    lookback: How many slots before its own it sees.

  Returns:
    [B, P, K] int32, -1 for what is not there.
  """
  codes_BPQ = codes_BU.reshape(*lowest_BP.shape, -1)
  slot_P = jnp.arange(lowest_BP.shape[1])
  seen = []
  for back in range(lookback + 1):
    is_there_BP = slot_P - back >= lowest_BP
    # Of a slot before the first, which is never there, another one comes.
    before_BPQ = jnp.roll(codes_BPQ, back, axis=1)
    seen.append(jnp.where(is_there_BP[..., None], before_BPQ, -1))
  return jnp.concatenate(seen, axis=-1)
