"""Codes of a level into its ids, as codes come, all segments of them at once.

Where segments see each other, or the entropy model says their ends, it is done
id by id instead, see `expansion_rows`.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.modules.generation import expansion_rows
from abstractinator.modules.generation.expansion_rows import RowState
from abstractinator.modules.generation.prompt import LevelPrompt, recent
from abstractinator.modules.generation.segments import (
  Expanded,
  Forced,
  Memory,
  draw_end,
  draw_id,
)
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops.draw import Draws
from abstractinator.types import Array, Special


@flax.struct.dataclass
class ExpansionState:
  """Where the rows of a level stand, between segments.

  Attributes:
    recent_BU: [B, R x Q] int32, codes of the `lookback` = R slots before.
    slot_B: [B] int32, slots so far.
    forced: What is known of the next segment.
    rows: What else goes on from segment to segment; None where nothing does.
  """

  recent_BU: Array
  slot_B: Array
  forced: Forced
  rows: RowState | None


def is_parallel(level: nn.Module) -> bool:
  """Whether the segments of a level decode all at once."""
  return level.expander.is_alone and level.config.expander.ends == 'head'


def start(
  level: nn.Module,
  prompt: LevelPrompt,
  codebooks: Codebooks | None,
  *,
  capacity: int,
  knows_last: Array,
) -> ExpansionState:
  """After the whole segments of a prompt.

  Args:
    level: Bound.
    prompt: Of the level.
    codebooks: Of the level below.
    capacity: Ids that a row may come to.
    knows_last: [B] bool, whether the last id of the open segment is there to
      stay; else it is the code of a segment that is open below.

  Returns:
    The state.
  """
  queries = level.config.pooling.num_queries
  size = level.config.expander.lookback * queries
  num_known_B = jnp.maximum(prompt.num_open_B - ~knows_last, 0)
  return ExpansionState(
    recent_BU=recent(prompt.codes_BU, prompt.num_whole_B * queries, size),
    slot_B=prompt.num_whole_B,
    forced=Forced(prompt.open_BL, num_known_B, prompt.num_open_B),
    rows=None
    if is_parallel(level)
    else expansion_rows.start(level, prompt, codebooks, capacity),
  )


def expand(
  level: nn.Module,
  state: ExpansionState,
  codes_BU: Array,
  count_B: Array,
  draws: Draws,
  limit_B: Array,
  codebooks: Codebooks | None = None,
) -> tuple[Expanded, ExpansionState]:
  """Makes ids of the next segments.

  Args:
    level: Bound.
    state: Of the call before, or of `start`.
    codes_BU: [B, U] int32, codes of the next P slots.
    count_B: [B] int32, how many of these slots there are.
    draws: Of the level.
    limit_B: [B] int32, new ids after which a row need not go on.
    codebooks: Of the level below.

  Returns:
    The ids, and the state.
  """
  queries = level.config.pooling.num_queries
  lookback = level.config.expander.lookback
  known_BU = jnp.concatenate([state.recent_BU, codes_BU], axis=1)
  slots = codes_BU.shape[1] // queries
  own_P = jnp.arange(lookback, lookback + slots)
  vectors_BUD = level.compressor.quantizer.lookup(known_BU)
  memory = Memory(
    remembered=level.expander.remember(vectors_BUD),
    own_BP=jnp.broadcast_to(own_P, (len(count_B), slots)),
    lowest_BP=jnp.broadcast_to(
      lookback - jnp.minimum(lookback, state.slot_B)[:, None],
      (len(count_B), slots),
    ),
  )
  has_any_B = count_B > 0
  args = (level, state, memory, count_B, draws)
  if state.rows is None:
    expanded, rows = _expand_segments(*args, codebooks), None
  else:
    expanded, rows = expansion_rows.expand(
      *args, limit_B, codebooks, state.slot_B
    )
  end_B = (lookback + count_B) * queries
  forced = state.forced.replace(
    num_known_B=jnp.where(has_any_B, 0, state.forced.num_known_B),
    num_ids_B=jnp.where(has_any_B, 0, state.forced.num_ids_B),
  )
  return expanded, ExpansionState(
    recent_BU=recent(known_BU, end_B, lookback * queries),
    slot_B=state.slot_B + count_B,
    forced=forced,
    rows=rows,
  )


def _expand_segments(level, state, memory, count_B, draws, codebooks):
  expander, forced = level.expander, state.forced
  longest = level.config.segmentation.max_length
  batch, slots = memory.own_BP.shape
  lanes = batch * slots
  is_first_N = jnp.tile(jnp.arange(slots) == 0, batch)
  draws = draws.repeat(slots)
  group_N = jnp.zeros((lanes,), jnp.int32)
  slot_N = (state.slot_B[:, None] + jnp.arange(slots)).reshape(-1)
  forced_N = jax.tree.map(lambda x: jnp.repeat(x, slots, axis=0), forced)

  def goes_on(_, carry):
    number, _, _, is_active_N, _ = carry
    return (number < longest) & jnp.any(is_active_N)

  def one_step(level, carry):
    number, cache, fed_N, is_active_N, out = carry
    offset_N = jnp.full((lanes,), number)
    x_ND, cache = level.expander.step(
      fed_N,
      offset_N,
      group_N,
      cache,
      is_active_N,
      (memory.remembered, memory.own_BP, memory.lowest_BP),
      codebooks,
    )
    of_id = draws.fold(slot_N * longest + number)
    ids_N, nats_N = draw_id(
      level, x_ND, of_id, forced_N, offset_N, is_first_N, codebooks
    )
    is_end_N, end_nats_N = draw_end(
      level, x_ND, ids_N, of_id, forced_N, offset_N, is_first_N, codebooks
    )
    ids_NL, nats_NL, end_nats_NL, length_N = out
    out = (
      ids_NL.at[:, number].set(ids_N),
      nats_NL.at[:, number].set(nats_N),
      end_nats_NL.at[:, number].set(end_nats_N),
      length_N + is_active_N,
    )
    return number + 1, cache, ids_N, is_active_N & ~is_end_N, out

  fed_N = jnp.full((lanes,), expander.num_ids + Special.BOS, jnp.int32)
  is_there_BP = jnp.arange(slots) < count_B[:, None]
  zeros_NL = jnp.zeros((lanes, longest), jnp.float32)
  out = (
    jnp.zeros((lanes, longest), jnp.int32),
    zeros_NL,
    zeros_NL,
    jnp.zeros((lanes,), jnp.int32),
  )
  *_, out = nn.while_loop(
    goes_on,
    one_step,
    level,
    (
      jnp.zeros((), jnp.int32),
      expander.init_cache(lanes, longest),
      fed_N,
      is_there_BP.reshape(-1),
      out,
    ),
  )
  ids_BPL, nats_BPL, end_nats_BPL = (
    x.reshape(batch, slots, longest) for x in out[:3]
  )
  return Expanded(
    ids_BPL=ids_BPL,
    length_BP=out[3].reshape(batch, slots),
    num_known_B=jnp.where(count_B > 0, forced.num_known_B, 0),
    nats_BPL=nats_BPL,
    end_nats_BPL=end_nats_BPL,
  )
