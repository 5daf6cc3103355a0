"""Generation through all levels: prompts to codes, more codes, codes to bytes.

`start` once, then `extend` as often as bytes are wanted. `prompt` compresses,
`top_codes` draws codes of the top level, `expansion` turns the codes of a level
into its ids. The functions take a bound pyramid; a row is the beginning of one
document.
"""

import jax.numpy as jnp

from abstractinator.decoding import expansion, open_segment, top_codes
from abstractinator.decoding import prompt as prompt_lib
from abstractinator.decoding.segments import new_ids
from abstractinator.decoding.state import GenerationState, Request
from abstractinator.model.pyramid import Pyramid
from abstractinator.ops.compact import compact
from abstractinator.types import Array, Special

# Limit of new ids at levels above the first: it is not known how many bytes an
# id of theirs becomes.
_NO_LIMIT = 1 << 30
# Segments of the top level per call. With more of them there are fewer calls,
# and more unused ones in the last call.
SLOTS = 16


def capacities(pyramid: Pyramid, capacity: int, num_slots: int) -> list[int]:
  """Returns the most ids that rows of each level, and of top codes, may have.

  Each byte may be a segment of its own, and the last call may make more ids
  than are wanted, at all levels but the first.

  Args:
    pyramid: A bound pyramid.
    capacity: Bytes that a row may come to.
    num_slots: Segments of the top level per call.
  """
  queries = [level.config.pooling.num_queries for level in pyramid.levels]
  sizes = [capacity]
  for num_queries in queries:
    sizes.append(sizes[-1] * num_queries)
  spare = num_slots * queries[-1]
  sizes[-1] += spare
  for number in range(len(queries) - 1, 0, -1):
    longest = pyramid.levels[number].config.segmentation.max_length
    spare = spare // queries[number] * longest
    sizes[number] += spare
  return sizes


def start(
  pyramid: Pyramid,
  ids_BS: Array,
  count_B: Array,
  request: Request,
  *,
  capacity: int,
  num_slots: int = SLOTS,
) -> GenerationState:
  """Compresses prompts and chooses the codes of their open segments.

  Args:
    pyramid: A bound pyramid.
    ids_BS: Bytes of the prompts, [B, S] int32.
    count_B: Bytes of each prompt, 0 to S, [B] int32.
    request: Sampling settings and limits.
    capacity: Bytes that a row may come to.
    num_slots: Largest `num_slots` of the calls of `extend` to come.

  Returns:
    The state.
  """
  levels, sizes = pyramid.levels, capacities(pyramid, capacity, num_slots)
  prompts = prompt_lib.compress(
    levels,
    ids_BS,
    count_B,
    capacities=sizes[:-1],
    keeps_open=pyramid.config.top_lm is None,
  )
  top, states_BUY = top_codes.start(pyramid, prompts[-1], capacity=sizes[-1])
  states, is_stream = [], top.stream is not None
  for number, level in enumerate(levels):
    is_top = number == len(levels) - 1
    states.append(
      expansion.start(
        level,
        prompts[number],
        prompt_lib.codebooks_below(pyramid, number),
        capacity=sizes[number],
        states_BUY=states_BUY if is_top else None,
        is_stream=is_stream and is_top,
      )
    )
  state = GenerationState(
    request=request,
    top=top,
    levels=tuple(states),
    rest=tuple(
      (jnp.zeros((len(count_B), q - 1), jnp.int32), jnp.zeros_like(count_B))
      for q in (level.config.pooling.num_queries for level in levels[:-1])
    ),
    num_bytes_B=jnp.zeros_like(count_B),
    is_done_B=request.limit_B <= 0,
  )
  return open_segment.choose_codes(pyramid, prompts, state)


def extend(
  pyramid: Pyramid,
  state: GenerationState,
  stopped_B: Array,
  *,
  num_slots: int = SLOTS,
) -> tuple[Array, Array, GenerationState]:
  """Decodes the bytes of the next top codes.

  The number of codes per call changes when bytes come, not which.

  Args:
    pyramid: A bound pyramid.
    state: State after the previous call, or of `start`.
    stopped_B: Rows that need no more bytes, [B] bool.
    num_slots: Segments of the top level.

  Returns:
    New bytes, those of each row at the front, [B, N] int32; their number, [B]
    int32; and the state. A row is done after EOS, the end of its codes, or its
    limit, which its last call may exceed by a few bytes.
  """
  request = state.request
  active_B = ~(state.is_done_B | stopped_B)
  draws = request.draws_of_top(len(pyramid.levels))
  top, is_stream = state.top, state.top.stream is not None
  if not is_stream:
    codes_BU, count_B, going_B, top = top_codes.extend(
      pyramid, top, num_slots, active_B, draws
    )
  levels, rest = list(state.levels), list(state.rest)
  for number in reversed(range(len(levels))):
    num_known_B = levels[number].known.num_known_B
    limit_B = jnp.full_like(request.limit_B, _NO_LIMIT)
    if number == 0:
      limit_B = request.limit_B - state.num_bytes_B
    limits = (request.draws_of_level(number), limit_B)
    if is_stream and number == len(levels) - 1:
      count_B = jnp.where(active_B, num_slots, 0)
      expanded, levels[number], top, going_B = expansion.expand_stream(
        pyramid, levels[number], top, count_B, num_slots, draws, *limits
      )
      going_B &= active_B
    else:
      expanded, levels[number] = expansion.expand(
        pyramid.levels[number],
        levels[number],
        codes_BU,
        count_B,
        *limits,
        prompt_lib.codebooks_below(pyramid, number),
      )
    ids_BN, count_B = new_ids(expanded, num_known_B)
    if number > 0:
      codes_BU, count_B, rest[number - 1] = _fill_slots(
        rest[number - 1], ids_BN, count_B
      )
  count_B, has_eos_B = _until_eos(
    ids_BN, count_B, pyramid.num_ids + Special.EOS
  )
  num_bytes_B = state.num_bytes_B + count_B
  return (
    ids_BN,
    count_B.astype(jnp.int32),
    GenerationState(
      request=request,
      top=top,
      levels=tuple(levels),
      rest=tuple(rest),
      num_bytes_B=num_bytes_B,
      is_done_B=~going_B | has_eos_B | (num_bytes_B >= request.limit_B),
    ),
  )


def _until_eos(ids_BN: Array, count_B: Array, eos: int) -> tuple[Array, Array]:
  """Returns the number of ids before EOS, [B], and where there is one, [B]."""
  position_N = jnp.arange(ids_BN.shape[1])
  is_eos_BN = (ids_BN == eos) & (position_N < count_B[:, None])
  has_eos_B = jnp.any(is_eos_BN, axis=1)
  return jnp.where(has_eos_B, jnp.argmax(is_eos_BN, axis=1), count_B), has_eos_B


def _fill_slots(
  rest: tuple[Array, Array], ids_BN: Array, count_B: Array
) -> tuple[Array, Array, tuple[Array, Array]]:
  """Groups new ids of a level into slots of the level below.

  Args:
    rest: Ids left over from the call before, the last ones of [B, Q - 1], and
      their number, [B].
    ids_BN: New ids, those of each row at the front, [B, N] int32.
    count_B: Their number, [B] int32.

  Returns:
    Codes [B, U] int32, the number of whole slots [B] int32, and what is left.
  """
  rest_BR, num_rest_B = rest
  spare, size = rest_BR.shape[1], ids_BN.shape[1]
  at_N = jnp.arange(-spare, size)
  is_id_BN = (at_N >= -num_rest_B[:, None]) & (at_N < count_B[:, None])
  codes_BU, total_B = compact(
    jnp.concatenate([rest_BR, ids_BN], axis=1), is_id_BN
  )
  queries = spare + 1
  padding = -codes_BU.shape[1] % queries
  slots_B, num_rest_B = jnp.divmod(total_B, queries)
  rest_BR = prompt_lib.recent(codes_BU, total_B, spare)
  return (
    jnp.pad(codes_BU, ((0, 0), (0, padding))),
    slots_B,
    (rest_BR, num_rest_B),
  )
