"""Decoding loop of one id per lane and step, for segments that stand alone.

It serves levels with `expander.context='segment'` and `expander.ends='head'`,
where no segment waits for the ids of another: continuous batching of segments.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.decoding.choices import Choice, Greedy
from abstractinator.decoding.loop import while_loop
from abstractinator.decoding.segments import (
  Expanded,
  NextIds,
  SegmentCodes,
  empty_expanded,
)
from abstractinator.model.expander import DecoderOnlyExpanderRVQ
from abstractinator.model.level import Abstractinator
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.ops.compact import first_equal
from abstractinator.ops.shards import num_row_shards
from abstractinator.types import Array, Special

# Lanes of a device at first. More gain nothing: products of this many rows run
# at full speed on a CPU, and an accelerator takes many times as many.
_MOST_LANES = {'cpu': 256}
_MOST_LANES_ELSEWHERE = 16384
# Divisors of the number of lanes that are tried near the end, one after the
# other. Each is one more program to compile.
_DIVISORS = (1, 2, 8)
# With fewer lanes than this a step takes as long as with one.
_FEW_LANES = 32


@flax.struct.dataclass
class LanesState:
  """State of the loop: B rows with Q lanes each.

  Attributes:
    next_B: Segments of each row that have begun, [B] int32.
    place_BQ: Number of each lane's segment among those of its row, [B, Q]
      int32.
    is_active_BQ: Lanes that have a segment, [B, Q] bool.
    offset_BQ: Position of the next id in its segment, [B, Q] int32.
    fed_BQ: Last id, or BOS, [B, Q] int32.
    cache: KV cache of the expander, of B x Q rows.
  """

  next_B: Array
  place_BQ: Array
  is_active_BQ: Array
  offset_BQ: Array
  fed_BQ: Array
  cache: Cache


def decode_lanes(
  expander: DecoderOnlyExpanderRVQ,
  codes: SegmentCodes,
  is_valid_BP: Array,
  choice: Choice,
  codebooks: Codebooks | None = None,
  *,
  most_lanes: int | None = None,
  few_lanes: int = _FEW_LANES,
) -> Expanded:
  """Decodes every segment, many at once.

  Each lane of a row decodes one segment; when that ends, it takes the next one
  of the row that no lane has. With a lane for each segment there are as many
  steps as the longest segment has ids, at most `max_length`. When no segment
  waits and a fraction of the lanes holds all that are left, only those lanes
  are computed.

  Args:
    expander: A bound expander with context 'segment' and ends 'head'.
    codes: Codes that the segments attend to.
    is_valid_BP: Slots with a segment, [B, P] bool.
    choice: Chooses ids and ends; their costs are not recorded.
    codebooks: Codebooks of the level below; None over bytes.
    most_lanes: Lanes of a device; by default 256 on a CPU, else 16384.
    few_lanes: Lanes of a device below which no lanes are taken away.

  Returns:
    The ids, in slots with a segment at least one.
  """
  batch, slots = is_valid_BP.shape
  max_length = expander.config.segmentation.max_length
  bos = expander.num_ids + Special.BOS
  count_B = jnp.sum(is_valid_BP, axis=1)
  # Slots with a segment come first, in the order in which they begin.
  slot_BP = jnp.argsort(~is_valid_BP, axis=1, stable=True)
  widths = lane_counts(batch, slots, most_lanes, few_lanes)
  place_BQ = jnp.broadcast_to(jnp.arange(widths[0]), (batch, widths[0]))
  state = LanesState(
    next_B=jnp.minimum(count_B, widths[0]),
    place_BQ=place_BQ,
    is_active_BQ=place_BQ < count_B[:, None],
    offset_BQ=jnp.zeros_like(place_BQ),
    fed_BQ=jnp.full_like(place_BQ, bos),
    cache=expander.init_cache(place_BQ.size, max_length),
  )
  out = empty_expanded(batch, slots, max_length, has_nats=False)
  for width, fewest in zip(widths, [*widths[1:], 0], strict=True):
    if width < widths[0]:
      state = _narrow(state, width)
    repeat = functools.partial(jnp.repeat, repeats=width, axis=0)
    of_lanes = jax.tree.map(repeat, choice)
    step = _make_step(codes, slot_BP, count_B, of_lanes, codebooks)
    state, out = while_loop(
      functools.partial(_has_more_than, fewest, count_B),
      step,
      expander,
      (state, out),
    )
  return out


def _has_more_than(
  count: int, count_B: Array, carry: tuple[LanesState, Expanded]
) -> Array:
  """Returns whether any row has more unfinished segments than that, [] bool."""
  state, _ = carry
  left_B = jnp.sum(state.is_active_BQ, axis=1) + count_B - state.next_B
  return jnp.max(left_B) > count


def _make_step(
  codes: SegmentCodes,
  slot_BP: Array,
  count_B: Array,
  choice: Choice,
  codebooks: Codebooks | None,
) -> Callable[..., tuple[LanesState, Expanded]]:
  """Returns the body of the loop; the choice has an entry for each lane."""
  batch, slots = slot_BP.shape
  row_B1 = jnp.arange(batch)[:, None]

  def one_step(
    expander: DecoderOnlyExpanderRVQ, carry: tuple[LanesState, Expanded]
  ) -> tuple[LanesState, Expanded]:
    state, out = carry
    shape = state.fed_BQ.shape
    slot_BQ = slot_BP[row_B1, state.place_BQ]
    offset_N = state.offset_BQ.reshape(-1)
    x_ND, cache = expander.step(
      state.fed_BQ.reshape(-1),
      offset_N,
      state.place_BQ.reshape(-1),
      state.cache,
      state.is_active_BQ.reshape(-1),
      codes.seen_from(slot_BQ),
      codebooks,
    )
    at = NextIds(
      expander,
      codebooks,
      x_ND,
      slot_BQ.reshape(-1),
      offset_N,
      spelling=codes.spelling(None, slot_BQ, state.offset_BQ),
    )
    ids_N = choice.ids(at)
    is_end_N = at.ends(choice.ends(at, ids_N)) & choice.may_end(at)
    is_end_BQ = is_end_N.reshape(shape)
    ids_BQ = ids_N.reshape(shape)
    at_BQ = jnp.where(state.is_active_BQ, slot_BQ, slots)
    out = out.record((row_B1, at_BQ, state.offset_BQ), ids_BQ, None)
    state = dataclasses.replace(state, cache=cache)
    bos = expander.num_ids + Special.BOS
    return _advance(state, ids_BQ, is_end_BQ, count_B, bos), out

  return one_step


def _advance(
  state: LanesState, ids_BQ: Array, is_end_BQ: Array, count_B: Array, bos: int
) -> LanesState:
  """Feeds ids back; lanes that are done take the next segment of their row."""
  is_done_BQ = state.is_active_BQ & is_end_BQ
  place_BQ = state.next_B[:, None] + jnp.cumsum(is_done_BQ, axis=1) - 1
  has_next_BQ = is_done_BQ & (place_BQ < count_B[:, None])
  return LanesState(
    next_B=state.next_B + jnp.sum(has_next_BQ, axis=1),
    place_BQ=jnp.where(has_next_BQ, place_BQ, state.place_BQ),
    is_active_BQ=jnp.where(is_done_BQ, has_next_BQ, state.is_active_BQ),
    offset_BQ=jnp.where(is_end_BQ, 0, state.offset_BQ + 1),
    fed_BQ=jnp.where(is_done_BQ, bos, ids_BQ),
    cache=state.cache,
  )


def lane_counts(
  batch: int,
  slots: int,
  most_lanes: int | None = None,
  few_lanes: int = _FEW_LANES,
) -> list[int]:
  """Returns numbers of lanes a row: at first, then when few are left.

  Args:
    batch: Rows, B.
    slots: Slots of a row, P, the most segments of a row.
    most_lanes: Lanes of a device; None for the default of the platform.
    few_lanes: Lanes of a device below which no lanes are taken away.
  """
  if most_lanes is None:
    most_lanes = _MOST_LANES.get(jax.default_backend(), _MOST_LANES_ELSEWHERE)
  rows = batch // num_row_shards(batch)
  width = min(slots, max(most_lanes // rows, 1))
  widths = {-(-width // divisor) for divisor in _DIVISORS}
  is_enough = [w for w in widths if rows * w >= few_lanes or w == width]
  return sorted(is_enough, reverse=True)


def _narrow(state: LanesState, width: int) -> LanesState:
  """Keeps `width` lanes of each row, those with a segment first."""
  batch, lanes = state.place_BQ.shape
  order_BQ = jnp.argsort(~state.is_active_BQ, axis=1, stable=True)[:, :width]

  def kept(x_BQX: Array) -> Array:
    # Row by row, so that rows may lie on different devices.
    return jax.vmap(lambda x_QX, order_Q: x_QX[order_Q])(x_BQX, order_BQ)

  def kept_of_cache(x_NX: Array) -> Array:
    x_BQX = x_NX.reshape(batch, lanes, *x_NX.shape[1:])
    return kept(x_BQX).reshape(batch * width, *x_NX.shape[1:])

  return LanesState(
    next_B=state.next_B,
    place_BQ=kept(state.place_BQ),
    is_active_BQ=kept(state.is_active_BQ),
    offset_BQ=kept(state.offset_BQ),
    fed_BQ=kept(state.fed_BQ),
    cache=jax.tree.map(kept_of_cache, state.cache),
  )


def decode_distinct(
  level: Abstractinator,
  codes_BU: Array,
  is_valid_BP: Array,
  lowest_BP: Array,
  codebooks: Codebooks | None = None,
) -> tuple[Array, Array]:
  """Decodes segments to their most likely ids, each distinct context once.

  Segments of a row that attend to the same codes decode to the same ids, so one
  of them is decoded. With a lookback of 0, where a segment attends to its own
  codes only, this holds for all rows of a device. With a lookback, scores also
  depend on the positions of codes, rounded as the compute type is: in bfloat16
  the result may depend on which of the alike segments is decoded.

  Args:
    level: A bound level, its expander with context 'segment' and ends 'head'.
    codes_BU: Codes, those of a slot side by side, [B, U] int32.
    is_valid_BP: Slots with a segment, [B, P] bool.
    lowest_BP: First slot that each segment attends to, [B, P] int32.
    codebooks: Codebooks of the level below; None over bytes.

  Returns:
    Ids [B, P, L] int32, 0 past a segment's end, and lengths [B, P] int32, 1 to
    L, 0 in empty slots.
  """
  batch, slots = is_valid_BP.shape
  lookback = level.config.expander.lookback
  groups = batch if lookback else num_row_shards(batch)
  # The rows of a group become one row, whose slots are numbered through.
  begin_B = slots * (jnp.arange(batch) % (batch // groups))
  codes_GU, is_valid_GP, lowest_GP = (
    x.reshape(groups, -1)
    for x in (codes_BU, is_valid_BP, lowest_BP + begin_B[:, None])
  )
  seen_GPK = codes_in_sight(codes_GU, lowest_GP, lookback)
  # The arbitrary code of an empty slot must not make it like a real segment.
  first_GP = first_equal(jnp.where(is_valid_GP[..., None], seen_GPK, -2))
  slot_P = jnp.arange(first_GP.shape[1])
  decoded = decode_lanes(
    level.expander,
    SegmentCodes.of(level, codes_GU, lowest_GP),
    is_valid_GP & (first_GP == slot_P),
    Greedy(),
    codebooks,
  )
  group_G1 = jnp.arange(groups)[:, None]
  length_GP = decoded.length_BP[group_G1, first_GP]
  return (
    decoded.ids_BPL[group_G1, first_GP].reshape(batch, slots, -1),
    jnp.where(is_valid_GP, length_GP, 0).reshape(batch, slots),
  )


def codes_in_sight(codes_BU: Array, lowest_BP: Array, lookback: int) -> Array:
  """Lists the codes that each segment attends to, as keys for comparison.

  Args:
    codes_BU: Codes, those of a slot side by side, [B, U] int32.
    lowest_BP: First slot that each segment attends to, [B, P] int32.
    lookback: Slots before its own that a segment attends to.

  Returns:
    [B, P, K] int32, -1 where a segment has fewer than K codes.
  """
  codes_BPQ = codes_BU.reshape(*lowest_BP.shape, -1)
  slot_P = jnp.arange(lowest_BP.shape[1])
  seen = []
  for back in range(lookback + 1):
    is_seen_BP = slot_P - back >= lowest_BP
    # The roll brings other codes to slots before the first, which are not seen.
    before_BPQ = jnp.roll(codes_BPQ, back, axis=1)
    seen.append(jnp.where(is_seen_BP[..., None], before_BPQ, -1))
  return jnp.concatenate(seen, axis=-1)
