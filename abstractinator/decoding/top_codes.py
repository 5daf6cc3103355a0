"""Generation of top codes: by the top LM, or the last code over and over."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from optax.losses import softmax_cross_entropy_with_integer_labels

from abstractinator.decoding.loop import while_loop
from abstractinator.decoding.prompt import LevelPrompt
from abstractinator.model.pyramid import Pyramid
from abstractinator.ops import digits as digits_lib
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
    top_lm: State of the top LM; None without one.
    number_B: Codes so far, [B] int32.
    forced_BQ: Codes of the next slot, [B, Q] int32.
    is_forced_B: Rows whose next slot has these codes, [B] bool.
    is_ended_B: Rows whose document has ended, [B] bool.
  """

  top_lm: TopLMState | None
  number_B: Array
  forced_BQ: Array
  is_forced_B: Array
  is_ended_B: Array

  @property
  def lm(self) -> TopLMState:
    """State of the top LM, where there is one."""
    assert self.top_lm is not None, 'the pyramid has no top LM'
    return self.top_lm


@flax.struct.dataclass
class TopCodes:
  """Codes of the next P slots.

  Attributes:
    codes_BU: Codes, [B, U] int32.
    count_B: Slots that hold a segment, the first ones, [B] int32.
    code_nats_BU: -log p of each code given those before it, [B, U] float32; 0
      for a continuous top LM and without one.
    end_nats_BU: -log p of the document's ending, or not, before each code,
      [B, U] float32; 0 where it was not asked.
  """

  codes_BU: Array
  count_B: Array
  code_nats_BU: Array
  end_nats_BU: Array


def start(pyramid: Pyramid, prompt: LevelPrompt, *, capacity: int) -> TopState:
  """Returns the state after the whole segments of a prompt.

  Without a top LM the codes of the prompt's last segment are forced from here
  on, whole or not.

  Args:
    pyramid: A bound pyramid.
    prompt: Prompts at the top level.
    capacity: Codes that a row may come to.
  """
  batch, size = prompt.codes_BU.shape
  queries = pyramid.config.levels[-1].pooling.num_queries
  none_B = jnp.zeros((batch,), bool)
  number_B = prompt.num_whole_B * queries
  if pyramid.config.top_lm is None:
    last_BQ = jnp.maximum(prompt.segments.count_B - 1, 0)[:, None] * queries
    last_BQ += jnp.arange(queries)
    forced_BQ = jnp.take_along_axis(prompt.codes_BU, last_BQ, axis=1)
    return TopState(None, number_B, forced_BQ, ~none_B, none_B)
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
  forced_BQ = jnp.zeros((batch, queries), jnp.int32)
  return TopState(
    TopLMState(cache, hidden_BY), number_B, forced_BQ, none_B, none_B
  )


def extend(
  pyramid: Pyramid,
  state: TopState,
  num_slots: int,
  active_B: Array,
  draws: Draws,
) -> tuple[TopCodes, TopState]:
  """Draws the codes of the next slots.

  Args:
    pyramid: A bound pyramid.
    state: State after the previous call, or of `start`.
    num_slots: Number of slots, P.
    active_B: Rows that get codes, [B] bool.
    draws: Random keys and filters of top codes.

  Returns:
    The codes, and the state.
  """
  batch, queries = state.forced_BQ.shape
  size = num_slots * queries
  zeros_BU = jnp.zeros((batch, size), jnp.float32)
  if state.top_lm is None:
    codes = TopCodes(
      codes_BU=jnp.tile(state.forced_BQ, num_slots),
      count_B=jnp.where(active_B, num_slots, 0),
      code_nats_BU=zeros_BU,
      end_nats_BU=zeros_BU,
    )
    number_B = state.number_B + codes.count_B * queries
    return codes, dataclasses.replace(state, number_B=number_B)

  def one_step(
    pyramid: Pyramid, carry: tuple[Array, TopState, TopCodes]
  ) -> tuple[Array, TopState, TopCodes]:
    number, state, codes = carry
    state, codes = _one_code(pyramid, number, state, codes, active_B, draws)
    return number + 1, state, codes

  codes = TopCodes(
    codes_BU=zeros_BU.astype(jnp.int32),
    count_B=jnp.zeros((batch,), jnp.int32),
    code_nats_BU=zeros_BU,
    end_nats_BU=zeros_BU,
  )
  _, state, codes = while_loop(
    lambda carry: (carry[0] < size) & jnp.any(active_B & ~carry[1].is_ended_B),
    one_step,
    pyramid,
    (jnp.zeros((), jnp.int32), state, codes),
  )
  is_forced_B = state.is_forced_B & ~(active_B & (codes.count_B > 0))
  return codes, dataclasses.replace(state, is_forced_B=is_forced_B)


def _one_code(
  pyramid: Pyramid,
  number: Array,
  state: TopState,
  codes: TopCodes,
  active_B: Array,
  draws: Draws,
) -> tuple[TopState, TopCodes]:
  """Draws code `number` of the call: whether the document ends, else a code."""
  queries = state.forced_BQ.shape[1]
  is_forced_B = state.is_forced_B & (number < queries)
  of_code = draws.fold(state.number_B)
  asks_end_B = active_B & ~state.is_ended_B & ~is_forced_B
  asks_end_B &= (number % queries == 0) & (state.number_B > 0)
  log_odds_B = pyramid.top_lm.end_logits(state.lm.hidden_BY)
  is_end_B = asks_end_B & draw_bools(of_code.fold(0), log_odds_B)
  end_nats_B = jax.nn.softplus(jnp.where(is_end_B, -log_odds_B, log_odds_B))
  is_ended_B = state.is_ended_B | is_end_B
  is_active_B = active_B & ~is_ended_B
  codes_B, nats_B = draw_code(
    pyramid,
    state.lm.hidden_BY,
    of_code,
    state.forced_BQ[:, number % queries],
    is_forced_B,
  )
  codes = TopCodes(
    codes_BU=codes.codes_BU.at[:, number].set(codes_B),
    count_B=codes.count_B + (is_active_B & (number % queries == queries - 1)),
    code_nats_BU=codes.code_nats_BU.at[:, number].set(
      jnp.where(is_active_B, nats_B, 0.0)
    ),
    end_nats_BU=codes.end_nats_BU.at[:, number].set(
      jnp.where(asks_end_B, end_nats_B, 0.0)
    ),
  )
  state = step(pyramid, state, codes_B, is_active_B)
  return dataclasses.replace(state, is_ended_B=is_ended_B), codes


def step(
  pyramid: Pyramid, state: TopState, codes_B: Array, active_B: Array
) -> TopState:
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
    vectors_BD[:, 0], jnp.zeros_like(codes_B), state.lm.cache, active_B
  )
  hidden_BY = jnp.where(active_B[:, None], hidden_BY, state.lm.hidden_BY)
  return dataclasses.replace(
    state,
    top_lm=TopLMState(cache, hidden_BY),
    number_B=state.number_B + active_B,
  )


def draw_code(
  pyramid: Pyramid,
  hidden_BY: Array,
  draws: Draws,
  forced_B: Array,
  is_forced_B: Array,
) -> tuple[Array, Array]:
  """Draws the codes after states of the top LM.

  A continuous top LM draws nothing: its code is the nearest one.

  Args:
    pyramid: A bound pyramid with a top LM.
    hidden_BY: States of the top LM, [B, Y].
    draws: Random keys and filters of these codes.
    forced_B: Codes to take in place of drawn ones, [B] int32.
    is_forced_B: Rows that take them, [B] bool.

  Returns:
    Codes, [B] int32, and their -log p, [B] float32.
  """
  quantizer = pyramid.levels[-1].compressor.quantizer
  if pyramid.top_lm.config.mode == 'continuous':
    vectors_BD = pyramid.top_lm.next_vector(hidden_BY)
    nearest = quantizer(
      vectors_BD[:, None], jnp.ones((len(forced_B), 1), bool), forced_B
    )
    codes_B = jnp.where(is_forced_B, forced_B, nearest.codes_BP[:, 0])
    return codes_B, jnp.zeros(codes_B.shape, jnp.float32)
  sizes = pyramid.config.levels[-1].quantizer.stage_sizes
  forced_BM = digits_lib.decompose(forced_B, sizes)
  nats = []

  def choose(stage: int, logits_BK: Array) -> Array:
    # Number 0 is the draw of the end before the code.
    drawn_B = draw_ids(draws.fold(1 + stage), logits_BK)
    digits_B = jnp.where(is_forced_B, forced_BM[:, stage], drawn_B)
    nats.append(softmax_cross_entropy_with_integer_labels(logits_BK, digits_B))
    return digits_B

  digits_BM = pyramid.top_lm.code_head.decode(hidden_BY, choose)
  return digits_lib.compose(digits_BM, sizes), sum(nats)
