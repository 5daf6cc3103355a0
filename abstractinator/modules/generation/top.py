"""Codes of the top level, as many as are wanted."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.modules.generation.prompt import LevelPrompt
from abstractinator.ops import digits as digits_lib
from abstractinator.ops.cache import Cache
from abstractinator.ops.cross_entropy import cross_entropy
from abstractinator.ops.draw import Draws, draw_bools, draw_ids
from abstractinator.types import Array


@flax.struct.dataclass
class TopState:
  """Where the top codes of rows stand, between slots.

  Without a top LM every slot to come has the codes in `forced_BQ`.

  Attributes:
    cache: Of the top LM; None without.
    state_BY: [B, Y], its state after the last code; None without.
    number_B: [B] int32, codes so far.
    forced_BQ: [B, Q] int32, codes of the next slot.
    is_forced_B: [B] bool, rows whose next slot has those.
    is_ended_B: [B] bool, documents that are over.
  """

  cache: Cache | None
  state_BY: Array | None
  number_B: Array
  forced_BQ: Array
  is_forced_B: Array
  is_ended_B: Array


@flax.struct.dataclass
class TopCodes:
  """Codes of the next P slots.

  Attributes:
    codes_BU: [B, U] int32.
    count_B: [B] int32, slots there are.
    code_nats_BU: [B, U] float32, -log p of each code given those before; 0 of a
      continuous top LM and without one.
    end_nats_BU: [B, U] float32, -log p of what was drawn of the end before each
      code, 0 where nothing was.
  """

  codes_BU: Array
  count_B: Array
  code_nats_BU: Array
  end_nats_BU: Array


def start(
  pyramid: nn.Module, prompt: LevelPrompt, *, capacity: int
) -> TopState:
  """After the whole segments of a prompt; without a top LM, after its last.

  Args:
    pyramid: Bound.
    prompt: Of the top level.
    capacity: Codes that a row may come to.

  Returns:
    The state, in which no code is forced where there is a top LM.
  """
  batch, size = prompt.codes_BU.shape
  queries = pyramid.config.levels[-1].pooling.num_queries
  none_B = jnp.zeros((batch,), bool)
  number_B = prompt.num_whole_B * queries
  if pyramid.config.top_lm is None:
    last_BQ = jnp.maximum(prompt.segments.count_B - 1, 0)[:, None] * queries
    last_BQ += jnp.arange(queries)
    forced_BQ = jnp.take_along_axis(prompt.codes_BU, last_BQ, axis=1)
    return TopState(None, None, number_B, forced_BQ, ~none_B, none_B)
  document_BU = jnp.where(jnp.arange(size) < number_B[:, None], 0, -1)
  states_BUY, cache = pyramid.top_lm.prefill(
    prompt.vectors_BUD,
    document_BU.astype(jnp.int32),
    pyramid.top_lm.init_cache(batch, max(capacity, size)),
  )
  last_BY = states_BUY[jnp.arange(batch), jnp.maximum(number_B - 1, 0)]
  state_BY = jnp.where(
    number_B[:, None] > 0, last_BY, pyramid.top_lm.start_state(batch)
  )
  forced_BQ = jnp.zeros((batch, queries), jnp.int32)
  return TopState(cache, state_BY, number_B, forced_BQ, none_B, none_B)


def extend(
  pyramid: nn.Module,
  state: TopState,
  num_slots: int,
  active_B: Array,
  draws: Draws,
) -> tuple[TopCodes, TopState]:
  """Codes of the next slots.

  Args:
    pyramid: Bound.
    state: Of the call before, or of `start`.
    num_slots: P.
    active_B: [B] bool, rows that go on; the others get none.
    draws: Of the top.

  Returns:
    The codes, and the state.
  """
  batch, queries = state.forced_BQ.shape
  size = num_slots * queries
  zeros_BU = jnp.zeros((batch, size), jnp.float32)
  if state.cache is None:
    codes = TopCodes(
      codes_BU=jnp.tile(state.forced_BQ, num_slots),
      count_B=jnp.where(active_B, num_slots, 0),
      code_nats_BU=zeros_BU,
      end_nats_BU=zeros_BU,
    )
    return codes, state.replace(
      number_B=state.number_B + codes.count_B * queries
    )

  def goes_on(_, carry):
    number, state, _ = carry
    return (number < size) & jnp.any(active_B & ~state.is_ended_B)

  def one_step(pyramid, carry):
    number, state, codes = carry
    is_forced_B = state.is_forced_B & (number < queries)
    of_code = draws.fold(state.number_B)
    asks_end_B = active_B & ~state.is_ended_B & ~is_forced_B
    asks_end_B &= (number % queries == 0) & (state.number_B > 0)
    log_odds_B = pyramid.top_lm.end_logits(state.state_BY)
    is_end_B = asks_end_B & draw_bools(of_code.fold(0), log_odds_B)
    end_nats_B = jax.nn.softplus(jnp.where(is_end_B, -log_odds_B, log_odds_B))
    end_nats_B = jnp.where(asks_end_B, end_nats_B, 0.0)
    is_ended_B = state.is_ended_B | is_end_B
    is_active_B = active_B & ~is_ended_B
    codes_B, nats_B = draw_code(
      pyramid,
      state.state_BY,
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
      end_nats_BU=codes.end_nats_BU.at[:, number].set(end_nats_B),
    )
    state = step(pyramid, state, codes_B, is_active_B)
    return number + 1, state.replace(is_ended_B=is_ended_B), codes

  codes = TopCodes(
    codes_BU=zeros_BU.astype(jnp.int32),
    count_B=jnp.zeros((batch,), jnp.int32),
    code_nats_BU=zeros_BU,
    end_nats_BU=zeros_BU,
  )
  _, state, codes = nn.while_loop(
    goes_on, one_step, pyramid, (jnp.zeros((), jnp.int32), state, codes)
  )
  is_forced_B = state.is_forced_B & ~(active_B & (codes.count_B > 0))
  return codes, state.replace(is_forced_B=is_forced_B)


def step(
  pyramid: nn.Module, state: TopState, codes_B: Array, active_B: Array
) -> TopState:
  """Takes one code a row, of active ones.

  Args:
    pyramid: Bound, with a top LM.
    state: Before it.
    codes_B: [B] int32.
    active_B: [B] bool.

  Returns:
    The state after it.
  """
  quantizer = pyramid.levels[-1].compressor.quantizer
  vectors_BD = quantizer.lookup(codes_B[:, None])[:, 0]
  state_BY, cache = pyramid.top_lm.step(
    vectors_BD, jnp.zeros_like(codes_B), state.cache, active_B
  )
  return state.replace(
    cache=cache,
    state_BY=jnp.where(active_B[:, None], state_BY, state.state_BY),
    number_B=state.number_B + active_B,
  )


def draw_code(
  pyramid: nn.Module,
  state_BY: Array,
  draws: Draws,
  forced_B: Array,
  is_forced_B: Array,
) -> tuple[Array, Array]:
  """Codes after states, drawn or forced.

  A continuous top LM draws nothing: its code is the nearest one.

  Args:
    pyramid: Bound, with a top LM.
    state_BY: [B, Y].
    draws: Of the codes.
    forced_B: [B] int32, codes to take.
    is_forced_B: [B] bool, where to take them.

  Returns:
    [B] int32, and -log p of them, [B] float32.
  """
  quantizer = pyramid.levels[-1].compressor.quantizer
  if pyramid.config.top_lm.mode == 'continuous':
    vectors_BD = pyramid.top_lm.next_vector(state_BY)
    nearest = quantizer(
      vectors_BD[:, None], jnp.ones((len(forced_B), 1), bool), forced_B
    )
    codes_B = jnp.where(is_forced_B, forced_B, nearest.codes_BP[:, 0])
    return codes_B, jnp.zeros(codes_B.shape, jnp.float32)
  sizes = pyramid.config.levels[-1].quantizer.stage_sizes
  forced_BM = digits_lib.decompose(forced_B, sizes)
  nats = []

  def choose(stage, logits_BK):
    # 0 is the end before the code.
    drawn_B = draw_ids(draws.fold(1 + stage), logits_BK)
    digits_B = jnp.where(is_forced_B, forced_BM[:, stage], drawn_B)
    nats.append(cross_entropy(logits_BK, digits_B))
    return digits_B

  digits_BM = pyramid.top_lm.code_head.decode(state_BY, choose)
  return digits_lib.compose(digits_BM, sizes), sum(nats)
