"""Expansion of the codes of one level into its ids, while text is generated."""

import dataclasses

import flax.struct
import jax.numpy as jnp

from abstractinator.decoding.choices import Drawn
from abstractinator.decoding.lanes import decode_lanes
from abstractinator.decoding.prompt import (
  LevelPrompt,
  codebooks_below,
  recent,
)
from abstractinator.decoding.rows import (
  RowsState,
  decode_rows,
  start_after_prompt,
)
from abstractinator.decoding.segments import Expanded, KnownIds, SegmentCodes
from abstractinator.decoding.stream import StreamCodes
from abstractinator.decoding.top_codes import TopState, draw_streamed
from abstractinator.model.level import Abstractinator
from abstractinator.model.pyramid import Pyramid
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
  states_BUY: Array | None = None,
  is_stream: bool = False,
) -> ExpansionState:
  """Returns the state after the whole segments of a prompt.

  Args:
    level: A bound level.
    prompt: The prompt at this level.
    codebooks: Codebooks of the level below; None over bytes.
    capacity: Ids that a row may come to.
    states_BUY: States from which the top LM predicts the codes of the prompt,
      [B, U, Y]; see `DecoderOnlyExpanderRVQ.memory`.
    is_stream: Whether codes come as a stream, for which segments decode one
      after the other.
  """
  queries = level.config.pooling.num_queries
  size = level.config.expander.lookback * queries
  rows = None
  if is_stream or not is_parallel(level):
    rows = start_after_prompt(level, prompt, codebooks, capacity, states_BUY)
  return ExpansionState(
    recent_BU=recent(prompt.codes_BU, prompt.num_whole_B * queries, size),
    slot_B=prompt.num_whole_B,
    known=prompt.open,
    rows=rows,
  )


def segment_codes(
  level: Abstractinator,
  state: ExpansionState,
  codes_BU: Array,
  states_BUY: Array | None = None,
) -> SegmentCodes:
  """Projects the codes of the next slots and of those that they look back to.

  Args:
    level: A bound level.
    state: State before these slots.
    codes_BU: Codes of the next P slots, [B, U] int32.
    states_BUY: States from which the top LM predicts the codes, [B, U, Y]; see
      `DecoderOnlyExpanderRVQ.memory`.

  Returns:
    The codes, for segments in these P slots.
  """
  lookback = level.config.expander.lookback
  all_BU = jnp.concatenate([state.recent_BU, codes_BU], axis=1)
  shape = (len(codes_BU), codes_BU.shape[1] // level.config.pooling.num_queries)
  lowest_B1 = lookback - jnp.minimum(lookback, state.slot_B)[:, None]
  vectors_BUD = level.compressor.quantizer.lookup(all_BU)
  return SegmentCodes(
    remembered=level.expander.remember(
      level.expander.memory(vectors_BUD, states_BUY)
    ),
    lowest_BP=jnp.broadcast_to(lowest_B1, shape),
    num_before=lookback,
    spelled_BUL=level.compressor.quantizer.spell(all_BU),
  )


def expand(
  level: Abstractinator,
  state: ExpansionState,
  codes_BU: Array,
  count_B: Array,
  draws: Draws,
  limit_B: Array,
  codebooks: Codebooks | None,
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
  known, slot_B, rows = state.known, state.slot_B, state.rows
  choice = Drawn(draws, known, slot_B)
  if rows is None:
    is_valid_BP = jnp.arange(codes.lowest_BP.shape[1]) < count_B[:, None]
    expanded = decode_lanes(
      level.expander, codes, is_valid_BP, choice, codebooks
    )
  else:
    expanded, rows, _ = decode_rows(
      level,
      rows,
      codes,
      count_B,
      limit_B,
      choice,
      codebooks,
      first_slot_B=slot_B,
    )
  all_BU = jnp.concatenate([state.recent_BU, codes_BU], axis=1)
  return expanded, ExpansionState(
    recent_BU=recent(
      all_BU, (lookback + count_B) * queries, lookback * queries
    ),
    slot_B=slot_B + count_B,
    known=known.unless(count_B > 0),
    rows=rows,
  )


def expand_stream(
  pyramid: Pyramid,
  state: ExpansionState,
  top: TopState,
  count_B: Array,
  num_slots: int,
  draws_of_top: Draws,
  draws: Draws,
  limit_B: Array,
) -> tuple[Expanded, ExpansionState, TopState, Array]:
  """Draws the next top codes one by one, and decodes the ids of each.

  Args:
    pyramid: A bound pyramid whose top codes come as a stream.
    state: State of the top level.
    top: State of the top codes.
    count_B: Segments that a row gets at most, [B] int32.
    num_slots: Most segments of any row, P.
    draws_of_top: Random keys and filters of top codes.
    draws: Random keys and filters of the level.
    limit_B: New ids after which a row may stop, [B] int32.

  Returns:
    The ids, those that `state.known` held included; the states; and the rows
    that go on, [B] bool.
  """
  assert state.rows is not None, 'a stream decodes row by row'
  lowest_BP = jnp.zeros((len(count_B), num_slots), jnp.int32)
  expanded, rows, end = decode_rows(
    pyramid,
    state.rows,
    StreamCodes(draw_streamed(top, draws_of_top), lowest_BP),
    count_B,
    limit_B,
    Drawn(draws, state.known, state.slot_B),
    codebooks_below(pyramid, len(pyramid.levels) - 1),
    first_slot_B=state.slot_B,
    stream=top.stream,
  )
  state = dataclasses.replace(
    state,
    slot_B=state.slot_B + count_B,
    known=state.known.unless(count_B > 0),
    rows=rows,
  )
  top = dataclasses.replace(
    top, stream=end.stream, is_forced_B=top.is_forced_B & (count_B == 0)
  )
  return expanded, state, top, ~end.is_done_B
