"""Expansion of the codes of one level into its ids, while text is generated."""

import dataclasses

import flax.struct
import jax.numpy as jnp

from abstractinator.decoding import rows as rows_lib
from abstractinator.decoding.choices import Drawn
from abstractinator.decoding.lanes import decode_lanes
from abstractinator.decoding.prompt import LevelPrompt, recent
from abstractinator.decoding.rows import RowsState, decode_rows
from abstractinator.decoding.segments import Expanded, KnownIds, SegmentCodes
from abstractinator.model.level import Abstractinator
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops.sampling import Draws
from abstractinator.types import Array


@flax.struct.dataclass
class ExpansionState:
  """State of a level between segments, one entry per row.

  Attributes:
    recent_BU: Codes of the `lookback` slots before the next one, [B, U] int32.
    slot_B: Slots so far, [B] int32.
    known: Known ids of the next segment.
    rows: State of `decode_rows`; None where segments decode in parallel.
  """

  recent_BU: Array
  slot_B: Array
  known: KnownIds
  rows: RowsState | None


def is_parallel(level: Abstractinator) -> bool:
  """Returns whether the segments of a level decode in lanes."""
  return level.expander.is_alone and level.config.expander.ends == 'head'


def start(
  level: Abstractinator,
  prompt: LevelPrompt,
  codebooks: Codebooks | None,
  *,
  capacity: int,
  knows_last: Array,
) -> ExpansionState:
  """Returns the state after the whole segments of a prompt.

  Args:
    level: A bound level.
    prompt: The prompt at this level.
    codebooks: Codebooks of the level below; None over bytes.
    capacity: Ids that a row may come to.
    knows_last: Whether the last id of the open segment is final, [B] bool; it
      is not where it is the code of a segment that is open below.
  """
  queries = level.config.pooling.num_queries
  size = level.config.expander.lookback * queries
  num_known_B = jnp.maximum(prompt.num_open_B - ~knows_last, 0)
  return ExpansionState(
    recent_BU=recent(prompt.codes_BU, prompt.num_whole_B * queries, size),
    slot_B=prompt.num_whole_B,
    known=KnownIds(prompt.open_BL, num_known_B, prompt.num_open_B),
    rows=None
    if is_parallel(level)
    else rows_lib.start_after_prompt(level, prompt, codebooks, capacity),
  )


def segment_codes(
  level: Abstractinator, state: ExpansionState, codes_BU: Array
) -> SegmentCodes:
  """Projects the codes of the next slots and of those that they look back to.

  Args:
    level: A bound level.
    state: State before these slots.
    codes_BU: Codes of the next P slots, [B, U] int32.

  Returns:
    The codes, for segments in these P slots.
  """
  lookback = level.config.expander.lookback
  all_BU = jnp.concatenate([state.recent_BU, codes_BU], axis=1)
  shape = (len(codes_BU), codes_BU.shape[1] // level.config.pooling.num_queries)
  lowest_B1 = lookback - jnp.minimum(lookback, state.slot_B)[:, None]
  return SegmentCodes(
    remembered=level.expander.remember(
      level.compressor.quantizer.lookup(all_BU)
    ),
    own_BP=jnp.broadcast_to(lookback + jnp.arange(shape[1]), shape),
    lowest_BP=jnp.broadcast_to(lowest_B1, shape),
  )


def expand(
  level: Abstractinator,
  state: ExpansionState,
  codes_BU: Array,
  count_B: Array,
  draws: Draws,
  limit_B: Array,
  codebooks: Codebooks | None = None,
) -> tuple[Expanded, ExpansionState]:
  """Decodes the ids of the next segments.

  Args:
    level: A bound level.
    state: State after the previous call, or of `start`.
    codes_BU: Codes of the next P slots, [B, U] int32.
    count_B: Slots among them that hold a segment, the first ones, [B] int32.
    draws: Random keys and filters of the level.
    limit_B: New ids after which a row may stop, [B] int32.
    codebooks: Codebooks of the level below; None over bytes.

  Returns:
    The ids, those that `state.known` held included, and the state.
  """
  queries = level.config.pooling.num_queries
  lookback = level.config.expander.lookback
  codes = segment_codes(level, state, codes_BU)
  choice = Drawn(
    codebooks,
    draws=draws,
    known=state.known,
    first_slot_B=state.slot_B,
    longest=level.config.segmentation.max_length,
  )
  rows = None
  if state.rows is None:
    is_valid_BP = jnp.arange(codes.own_BP.shape[1]) < count_B[:, None]
    expanded = decode_lanes(level.expander, codes, is_valid_BP, choice)
  else:
    expanded, rows = decode_rows(
      level,
      state.rows,
      codes,
      count_B,
      limit_B,
      choice,
      first_slot_B=state.slot_B,
    )
  known_BU = jnp.concatenate([state.recent_BU, codes_BU], axis=1)
  is_left_B = count_B == 0
  expanded = dataclasses.replace(
    expanded, num_known_B=jnp.where(is_left_B, 0, state.known.num_known_B)
  )
  return expanded, ExpansionState(
    recent_BU=recent(
      known_BU, (lookback + count_B) * queries, lookback * queries
    ),
    slot_B=state.slot_B + count_B,
    known=dataclasses.replace(
      state.known,
      num_known_B=jnp.where(is_left_B, state.known.num_known_B, 0),
      num_ids_B=jnp.where(is_left_B, state.known.num_ids_B, 0),
    ),
    rows=rows,
  )
