"""Generation of top codes: by the top LM, or the last code over and over."""

import dataclasses

import flax.struct
import jax.numpy as jnp

from abstractinator.decoding import stream
from abstractinator.decoding.loop import while_loop
from abstractinator.decoding.prompt import LevelPrompt
from abstractinator.decoding.stream import ChooseCodes, StreamState
from abstractinator.model.pyramid import Pyramid
from abstractinator.model.top_lm import CodePrior
from abstractinator.ops.cache import Cache
from abstractinator.ops.sampling import Draws, draw_bools, draw_ids
from abstractinator.types import Array


@flax.struct.dataclass
class TopLMState:
  """State of the top LM, one entry per row.

  Attributes:
    cache: KV cache.
    hidden_BY: State after the last code, [B, Y].
  """

  cache: Cache
  hidden_BY: Array


@flax.struct.dataclass
class TopState:
  """State of the top codes between slots, one entry per row.

  Without a top LM every slot to come has the codes in `forced_BQ`.

  Attributes:
    top_lm: State of the top LM; None without one, and where codes come as a
      stream.
    stream: State of the stream of codes; None where they do not.
    number_B: Codes so far that the top LM has read, [B] int32.
    forced_BQ: Codes of the next slot, [B, Q] int32.
    is_forced_B: Rows whose next slot has these codes, [B] bool.
  """

  top_lm: TopLMState | None
  stream: StreamState | None
  number_B: Array
  forced_BQ: Array
  is_forced_B: Array


def start(
  pyramid: Pyramid, prompt: LevelPrompt, *, capacity: int
) -> tuple[TopState, Array | None]:
  """Returns the state after the whole segments of a prompt.

  Without a top LM the codes of the prompt's last segment are forced from here
  on, whole or not.

  Args:
    pyramid: A bound pyramid.
    prompt: Prompts at the top level.
    capacity: Codes that a row may come to.

  Returns:
    The state; and, where codes come as a stream, the states from which those of
    the prompt are predicted, [B, U, Y].
  """
  batch, size = prompt.codes_BU.shape
  queries = pyramid.config.levels[-1].pooling.num_queries
  none_B = jnp.zeros((batch,), bool)
  number_B = prompt.num_whole_B * queries
  if pyramid.config.top_lm is None:
    last_BQ = jnp.maximum(prompt.segments.count_B - 1, 0)[:, None] * queries
    last_BQ += jnp.arange(queries)
    forced_BQ = jnp.take_along_axis(prompt.codes_BU, last_BQ, axis=1)
    return TopState(None, None, number_B, forced_BQ, ~none_B), None
  forced_BQ = jnp.zeros((batch, queries), jnp.int32)
  if pyramid.config.streams:
    state, states_BUY = stream.after_prompt(pyramid, prompt, capacity)
    return TopState(None, state, number_B, forced_BQ, none_B), states_BUY
  document_BU = jnp.where(jnp.arange(size) < number_B[:, None], 0, -1)
  states_BUY, cache = pyramid.top_lm.prefill(
    prompt.vectors_BUD,
    document_BU.astype(jnp.int32),
    pyramid.top_lm.init_cache(batch, max(capacity, size)),
  )
  last_BY = states_BUY[jnp.arange(batch), jnp.maximum(number_B - 1, 0)]
  hidden_BY = jnp.where(
    number_B[:, None] > 0, last_BY, pyramid.top_lm.start_state(batch)
  )
  top_lm = TopLMState(cache, hidden_BY)
  return TopState(top_lm, None, number_B, forced_BQ, none_B), None


def extend(
  pyramid: Pyramid,
  state: TopState,
  num_slots: int,
  active_B: Array,
  draws: Draws,
) -> tuple[Array, Array, Array, TopState]:
  """Draws the codes of the next slots, and whether documents end before them.

  Args:
    pyramid: A bound pyramid.
    state: State after the previous call, or of `start`.
    num_slots: Number of slots, P.
    active_B: Rows that get codes, [B] bool.
    draws: Random keys and filters of top codes.

  Returns:
    Codes, [B, U] int32; slots that hold a segment, the first ones, [B] int32;
    rows that get codes and whose document has not ended, [B] bool; the state.
  """
  batch, queries = state.forced_BQ.shape
  if state.top_lm is None:
    codes_BU = jnp.tile(state.forced_BQ, num_slots)
    return codes_BU, jnp.where(active_B, num_slots, 0), active_B, state
  size = num_slots * queries

  def one_step(
    pyramid: Pyramid, carry: tuple[Array, TopLMState, Array, Array, Array]
  ) -> tuple[Array, TopLMState, Array, Array, Array]:
    number, top_lm, codes_BU, count_B, active_B = carry
    of_slot, number_B = number % queries, state.number_B + number
    is_forced_B = state.is_forced_B & (number < queries)
    of_code = draws.fold(number_B)
    asks_end_B = (of_slot == 0) & (number_B > 0) & ~is_forced_B
    active_B &= ~(asks_end_B & draw_end(pyramid, top_lm.hidden_BY, of_code))
    codes_B = jnp.where(
      is_forced_B,
      state.forced_BQ[:, of_slot],
      draw_code(pyramid, top_lm.hidden_BY, of_code),
    )
    top_lm = step(pyramid, top_lm, codes_B, active_B)
    count_B += active_B & (of_slot == queries - 1)
    codes_BU = codes_BU.at[:, number].set(codes_B)
    return number + 1, top_lm, codes_BU, count_B, active_B

  _, top_lm, codes_BU, count_B, going_B = while_loop(
    lambda carry: (carry[0] < size) & jnp.any(carry[-1]),
    one_step,
    pyramid,
    (
      jnp.zeros((), jnp.int32),
      state.top_lm,
      jnp.zeros((batch, size), jnp.int32),
      jnp.zeros((batch,), jnp.int32),
      active_B,
    ),
  )
  state = dataclasses.replace(
    state,
    top_lm=top_lm,
    number_B=state.number_B + count_B * queries,
    is_forced_B=state.is_forced_B & (count_B == 0),
  )
  return codes_BU, count_B, going_B, state


def step(
  pyramid: Pyramid, state: TopLMState, codes_B: Array, active_B: Array
) -> TopLMState:
  """Feeds one code a row to the top LM.

  Args:
    pyramid: A bound pyramid with a top LM.
    state: State before the codes.
    codes_B: Codes, [B] int32.
    active_B: Rows that take theirs, [B] bool.

  Returns:
    The state after the codes.
  """
  vectors_BD = pyramid.levels[-1].compressor.quantizer.lookup(codes_B[:, None])
  hidden_BY, cache = pyramid.top_lm.step(
    vectors_BD[:, 0], jnp.zeros_like(codes_B), state.cache, active_B
  )
  hidden_BY = jnp.where(active_B[:, None], hidden_BY, state.hidden_BY)
  return TopLMState(cache, hidden_BY)


def draw_streamed(state: TopState, draws: Draws) -> ChooseCodes:
  """Returns the function that draws the codes of a stream.

  Args:
    state: State before the call, which may force the first code.
    draws: Random keys and filters of top codes.
  """

  def choose(
    pyramid: Pyramid, opened: StreamState, slot_B: Array
  ) -> tuple[Array, Array]:
    of_code = draws.fold(opened.number_B)
    is_forced_B = state.is_forced_B & (slot_B == 0)
    is_over_B = draw_end(pyramid, opened.hidden_BY, of_code)
    codes_B = jnp.where(
      is_forced_B,
      state.forced_BQ[:, 0],
      draw_code(pyramid, opened.hidden_BY, of_code, opened.prior),
    )
    return codes_B, is_over_B & (opened.number_B > 0) & ~is_forced_B

  return choose


def draw_end(pyramid: Pyramid, hidden_BY: Array, draws: Draws) -> Array:
  """Draws whether documents end after states of the top LM, [B] bool."""
  return draw_bools(draws.fold(0), pyramid.top_lm.end_logits(hidden_BY))


def draw_code(
  pyramid: Pyramid,
  hidden_BY: Array,
  draws: Draws,
  prior: CodePrior | None = None,
) -> Array:
  """Draws the codes after states of the top LM.

  A continuous top LM draws nothing: its code is the nearest one.

  Args:
    pyramid: A bound pyramid with a top LM.
    hidden_BY: States of the top LM, [B, Y].
    draws: Random keys and filters of these codes.
    prior: Prediction of the first ids of their segments, [B]; None without
      `top_lm.base`.

  Returns:
    Codes, [B] int32.
  """
  if pyramid.top_lm.config.mode == 'continuous':
    vectors_BUD = pyramid.top_lm.next_vector(hidden_BY, prior)[:, None]
    is_code_BU = jnp.ones(vectors_BUD.shape[:2], bool)
    row_B = jnp.arange(len(hidden_BY))
    nearest, _ = pyramid.nearest_codes(vectors_BUD, is_code_BU, row_B)
    return nearest.codes_BP[:, 0]
  # Number 0 is the draw of the end before the code.
  return pyramid.top_lm.draw_code(
    hidden_BY,
    prior,
    lambda stage, logits_BK: draw_ids(draws.fold(1 + stage), logits_BK),
  )
