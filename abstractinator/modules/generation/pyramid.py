"""Rows of bytes, continued."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.modules.generation import expansion, open_segment, top
from abstractinator.modules.generation import prompt as prompt_lib
from abstractinator.modules.generation.expansion import ExpansionState
from abstractinator.modules.generation.request import Request
from abstractinator.modules.generation.segments import Expanded, new_ids
from abstractinator.modules.generation.top import TopCodes, TopState
from abstractinator.ops.compact import compact
from abstractinator.types import Array, Special


@flax.struct.dataclass
class GenerationState:
  """Where rows stand.

  Attributes:
    request: What is asked for.
    top: Of the top codes.
    levels: Of each level, bottom first.
    rest: Of each level but the top one, ids [B, Q - 1] int32 of the level above
      that do not fill a slot yet, and how many, [B] int32.
    num_bytes_B: [B] int32, new bytes so far.
    is_done_B: [B] bool, rows that do not go on.
  """

  request: Request
  top: TopState
  levels: tuple[ExpansionState, ...]
  rest: tuple[tuple[Array, Array], ...]
  num_bytes_B: Array
  is_done_B: Array


@flax.struct.dataclass
class Extension:
  """New bytes.

  Attributes:
    bytes_BN: [B, N] int32, those of each row at the front.
    count_B: [B] int32, how many.
    top: The codes they come from.
    levels: What each level made of them, bottom first; of the first, what comes
      after EOS or the limit counts for nothing.
  """

  bytes_BN: Array
  count_B: Array
  top: TopCodes
  levels: tuple[Expanded, ...]


def capacities(pyramid: nn.Module, capacity: int, num_slots: int) -> list[int]:
  """Ids of each level, and top codes, that rows of so many bytes may come to.

  Each byte may be a segment of its own, and the last call may make more ids
  than are wanted, of all levels but the first.
  """
  queries = [level.config.pooling.num_queries for level in pyramid.levels]
  sizes = [capacity]
  for of_level in queries:
    sizes.append(sizes[-1] * of_level)
  spare = num_slots * queries[-1]
  sizes[-1] += spare
  for number in range(len(queries) - 1, 0, -1):
    longest = pyramid.levels[number].config.segmentation.max_length
    spare = spare // queries[number] * longest
    sizes[number] += spare
  return sizes


def start(
  pyramid: nn.Module,
  ids_BS: Array,
  count_B: Array,
  request: Request,
  *,
  capacity: int,
  num_slots: int,
  method: str = 'rescore',
) -> GenerationState:
  """Compresses prompts, and chooses codes for their open segments.

  Args:
    pyramid: Bound.
    ids_BS: [B, S] int32, bytes.
    count_B: [B] int32, how many of a row there are, 0 to S.
    request: What is asked for.
    capacity: Bytes that a row may come to.
    num_slots: As of `extend`, the largest of the calls to come.
    method: See `open_segment`.

  Returns:
    The state.
  """
  levels, sizes = pyramid.levels, capacities(pyramid, capacity, num_slots)
  keeps_open = method == 'as_is' or pyramid.config.top_lm is None
  prompts = prompt_lib.compress(
    levels,
    ids_BS,
    count_B,
    capacities=sizes[:-1],
    keeps_open=keeps_open,
    closes=method == 'close',
  )
  states = []
  for number, (level, prompt) in enumerate(zip(levels, prompts, strict=True)):
    knows_last_B = jnp.ones(count_B.shape, bool)
    if number > 0 and keeps_open:
      knows_last_B = ~prompts[number - 1].has_open_B
    states.append(
      expansion.start(
        level,
        prompt,
        prompt_lib.codebooks_below(pyramid, number),
        capacity=sizes[number],
        knows_last=knows_last_B,
      )
    )
  state = GenerationState(
    request=request,
    top=top.start(pyramid, prompts[-1], capacity=sizes[-1]),
    levels=tuple(states),
    rest=tuple(_no_rest(level, len(count_B)) for level in levels[:-1]),
    num_bytes_B=jnp.zeros_like(count_B),
    is_done_B=request.limit_B <= 0,
  )
  return open_segment.METHODS[method](pyramid, prompts, state)


def extend(
  pyramid: nn.Module,
  state: GenerationState,
  stopped_B: Array,
  *,
  num_slots: int,
) -> tuple[Extension, GenerationState]:
  """The bytes of the next top codes.

  How many codes a call takes changes nothing but when bytes come.

  Args:
    pyramid: Bound.
    state: Of the call before, or of `start`.
    stopped_B: [B] bool, rows that need not go on.
    num_slots: Segments of the top level.

  Returns:
    New bytes, and the state. A row is done after EOS, the last code, or its
    limit; the last call may go beyond that by a few bytes.
  """
  request = state.request
  is_done_B = state.is_done_B | stopped_B
  codes, top_state = top.extend(
    pyramid,
    state.top,
    num_slots,
    ~is_done_B,
    request.draws_of_top(len(pyramid.levels)),
  )
  limit_B = request.limit_B - state.num_bytes_B
  levels, rest, outputs = list(state.levels), list(state.rest), []
  codes_BU, count_B = codes.codes_BU, codes.count_B
  for number in reversed(range(len(levels))):
    expanded, levels[number] = expansion.expand(
      pyramid.levels[number],
      levels[number],
      codes_BU,
      count_B,
      request.draws_of_level(number),
      # Of an id of an upper level it is not known how many bytes it makes.
      limit_B if number == 0 else jnp.full_like(limit_B, 1 << 30),
      prompt_lib.codebooks_below(pyramid, number),
    )
    outputs.append(expanded)
    ids_BN, count_B = compact(*new_ids(expanded))
    if number > 0:
      queries = pyramid.levels[number - 1].config.pooling.num_queries
      codes_BU, count_B, rest[number - 1] = _fill_slots(
        rest[number - 1], ids_BN, count_B, queries
      )
  eos = pyramid.num_ids + Special.EOS
  position_N = jnp.arange(ids_BN.shape[1])
  is_eos_BN = (ids_BN == eos) & (position_N < count_B[:, None])
  has_eos_B = jnp.any(is_eos_BN, axis=1)
  count_B = jnp.where(has_eos_B, jnp.argmax(is_eos_BN, axis=1), count_B)
  num_bytes_B = state.num_bytes_B + count_B
  is_done_B |= has_eos_B | top_state.is_ended_B
  is_done_B |= num_bytes_B >= request.limit_B
  return Extension(
    bytes_BN=ids_BN,
    count_B=count_B.astype(jnp.int32),
    top=codes,
    levels=tuple(reversed(outputs)),
  ), GenerationState(
    request=request,
    top=top_state,
    levels=tuple(levels),
    rest=tuple(rest),
    num_bytes_B=num_bytes_B,
    is_done_B=is_done_B,
  )


def generate_bytes(
  pyramid: nn.Module,
  ids_BS: Array,
  count_B: Array,
  request: Request,
  *,
  max_new_bytes: int,
  num_slots: int,
) -> tuple[Array, Array]:
  """All of it in one program; see `AbstractinatorPyramid.generate_bytes`."""
  batch, size = ids_BS.shape
  limit_B = jnp.minimum(request.limit_B, max_new_bytes)
  state = start(
    pyramid,
    ids_BS,
    count_B,
    request.replace(limit_B=limit_B),
    capacity=size + max_new_bytes,
    num_slots=num_slots,
  )
  row_B1 = jnp.arange(batch)[:, None]
  none_B = jnp.zeros((batch,), bool)

  def one_call(pyramid, carry):
    state, bytes_BN = carry
    extension, after = extend(pyramid, state, none_B, num_slots=num_slots)
    position_N = jnp.arange(extension.bytes_BN.shape[1])
    at_BN = jnp.where(
      position_N < extension.count_B[:, None],
      state.num_bytes_B[:, None] + position_N,
      max_new_bytes,
    )
    return after, bytes_BN.at[row_B1, at_BN].set(
      extension.bytes_BN, mode='drop'
    )

  state, bytes_BN = nn.while_loop(
    lambda _, carry: ~jnp.all(carry[0].is_done_B),
    one_call,
    pyramid,
    (state, jnp.zeros((batch, max_new_bytes), jnp.int32)),
  )
  return bytes_BN, jnp.minimum(state.num_bytes_B, limit_B)


def _no_rest(level, batch):
  queries = level.config.pooling.num_queries
  return (
    jnp.zeros((batch, queries - 1), jnp.int32),
    jnp.zeros((batch,), jnp.int32),
  )


def _fill_slots(
  rest: tuple[Array, Array], ids_BN: Array, count_B: Array, queries: int
) -> tuple[Array, Array, tuple[Array, Array]]:
  """Codes of whole slots, how many slots, and what is left."""
  rest_BR, num_rest_B = rest
  spare = queries - 1
  all_BN = jnp.concatenate([rest_BR, ids_BN], axis=1)
  is_there_BN = jnp.concatenate(
    [
      jnp.arange(spare) < num_rest_B[:, None],
      jnp.arange(ids_BN.shape[1]) < count_B[:, None],
    ],
    axis=1,
  )
  # As many as fill slots, whatever N is.
  padding = -all_BN.shape[1] % queries
  all_BN, is_there_BN = (
    jnp.pad(x, ((0, 0), (0, padding))) for x in (all_BN, is_there_BN)
  )
  codes_BU, total_B = compact(all_BN, is_there_BN)
  slots_B = total_B // queries
  at_BR = slots_B[:, None] * queries + jnp.arange(spare)
  left_BR = jnp.take_along_axis(
    codes_BU, jnp.minimum(at_BR, codes_BU.shape[1] - 1), axis=1
  )
  return codes_BU, slots_B, (left_BR, total_B % queries)
