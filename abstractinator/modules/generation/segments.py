"""What is known of segments, what becomes of them, and draws of their ids."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops.draw import Draws, draw_bools, draw_ids
from abstractinator.types import Array, PyTree


@flax.struct.dataclass
class Forced:
  """What is known of the next segment of each row.

  Attributes:
    ids_BL: [B, L] int32, its first ids.
    num_known_B: [B] int32, how many of them are not new: none of those ends the
      segment.
    num_ids_B: [B] int32, how many there are, the known ones included.
  """

  ids_BL: Array
  num_known_B: Array
  num_ids_B: Array


@flax.struct.dataclass
class Memory:
  """Codes that segments see.

  Attributes:
    remembered: From `remember` of the expander.
    own_BP: [B, P] int32, slot of each segment.
    lowest_BP: [B, P] int32, first slot that it may see.
  """

  remembered: PyTree
  own_BP: Array
  lowest_BP: Array


@flax.struct.dataclass
class Expanded:
  """Ids of segments.

  Attributes:
    ids_BPL: [B, P, L] int32.
    length_BP: [B, P] int32, how many of them hold; 0 in slots without.
    num_known_B: [B] int32, ids of the first segment that are not new.
    nats_BPL: [B, P, L] float32, -log p of each id given the codes and the ids
      before.
    end_nats_BPL: [B, P, L] float32, -log p of whether the segment ends after
      it; 0 where that is certain or known, and where no head says it.
  """

  ids_BPL: Array
  length_BP: Array
  num_known_B: Array
  nats_BPL: Array
  end_nats_BPL: Array


def draw_id(
  level: nn.Module,
  x_ND: Array,
  draws: Draws,
  forced: Forced,
  offset_N: Array,
  is_first_N: Array,
  codebooks: Codebooks | None,
) -> tuple[Array, Array]:
  """Ids of states, drawn or forced.

  Args:
    level: Bound.
    x_ND: [N, D].
    draws: Of the ids.
    forced: Of the rows, [N] each.
    offset_N: [N] int32, positions in segments.
    is_first_N: [N] bool, whether the segment is the one that is forced.
    codebooks: Of the level below.

  Returns:
    [N] int32, and their -log p, [N] float32, 0 for known ones.
  """
  vocabulary = level.expander.vocabulary
  ids_N, nats_N = vocabulary.draw(
    x_ND,
    lambda digit, logits: draw_ids(draws.fold(digit), logits),
    codebooks,
  )
  forced_N = jnp.take_along_axis(forced.ids_BL, offset_N[:, None], axis=1)[:, 0]
  is_forced_N = is_first_N & (offset_N < forced.num_ids_B)
  is_known_N = is_first_N & (offset_N < forced.num_known_B)
  ids_N = jnp.where(is_forced_N, forced_N, ids_N)
  if len(level.expander.sizes) > 1 or not level.expander.has_eos:
    # Only codes are forced that are not known, too.
    told = vocabulary.predict(x_ND, ids_N, codebooks)
    nats_N = jnp.where(is_forced_N, vocabulary.nats(told, ids_N), nats_N)
  return ids_N, jnp.where(is_known_N, 0.0, nats_N)


def draw_end(
  level: nn.Module,
  x_ND: Array,
  ids_N: Array,
  draws: Draws,
  forced: Forced,
  offset_N: Array,
  is_first_N: Array,
  codebooks: Codebooks | None,
) -> tuple[Array, Array]:
  """Whether ids end their segments, as the head says; see `draw_id`.

  Returns:
    [N] bool, and -log p of that, [N] float32.
  """
  expander = level.expander
  log_odds_N = expander.end_logits(x_ND, ids_N, codebooks)
  is_end_N = draw_bools(draws.fold(len(expander.sizes)), log_odds_N)
  is_certain_N = expander.end_is_certain(ids_N, offset_N)
  is_known_N = is_first_N & (offset_N < forced.num_known_B)
  is_end_N = (is_end_N | is_certain_N) & ~is_known_N
  nats_N = jax.nn.softplus(jnp.where(is_end_N, -log_odds_N, log_odds_N))
  return is_end_N, jnp.where(is_certain_N | is_known_N, 0.0, nats_N)


def new_ids(expanded: Expanded) -> tuple[Array, Array]:
  """Ids [B, P x L] int32 in order, and which of them are there and new."""
  batch, slots, longest = expanded.ids_BPL.shape
  offset_L = jnp.arange(longest)
  is_new_BPL = offset_L < expanded.length_BP[..., None]
  is_known_BPL = (jnp.arange(slots) == 0)[:, None] & (
    offset_L < expanded.num_known_B[:, None, None]
  )
  is_new_BPL &= ~is_known_BPL
  return (
    expanded.ids_BPL.reshape(batch, -1),
    is_new_BPL.reshape(batch, -1),
  )
