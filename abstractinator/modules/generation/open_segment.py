"""Codes of segments that a prompt leaves open.

The prompt ends within a segment of a level, and its code, which depends on the
bytes to come, must be chosen before they are. Methods, for `pyramid.start`:

  rescore: the most likely codes under what predicts them, the top LM or the
    expander above, each weighed by how likely it makes the ids of the segment
    that are there, and that the segment went on after each: the code is drawn
    from p(code | codes before, ids of the segment).
  predict: drawn as any other code, whatever the ids.
  as_is: the code of the segment as far as it is there.
  close: the same, and the segment ends with the prompt.

The known ids are kept in any case. `benchmarks.open_segment` compares them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.modules.generation import top
from abstractinator.modules.generation.prompt import codebooks_below
from abstractinator.ops import digits as digits_lib
from abstractinator.ops.cross_entropy import cross_entropy
from abstractinator.ops.draw import Draws, draw_ids
from abstractinator.types import Array, PyTree, Special

NUM_CANDIDATES = 32


def as_is(pyramid: nn.Module, prompts: list, state: PyTree) -> PyTree:
  """Forces the codes of open segments of the top level."""
  if pyramid.config.top_lm is None:
    return state
  prompt = prompts[-1]
  queries = pyramid.config.levels[-1].pooling.num_queries
  at_BQ = prompt.num_whole_B[:, None] * queries + jnp.arange(queries)
  at_BQ = jnp.minimum(at_BQ, prompt.codes_BU.shape[1] - 1)
  return _force_top(
    state,
    jnp.take_along_axis(prompt.codes_BU, at_BQ, axis=1),
    prompt.has_open_B,
  )


def rescore(pyramid: nn.Module, prompts: list, state: PyTree) -> PyTree:
  """Chooses codes of open segments from the top down.

  Of several codes a segment the last one is chosen so and the ones before it
  are drawn, at the top; at lower levels all are. What a continuous top LM
  predicts is taken as it is. At a level above the first, the ids that are known
  are codes of whole segments below.
  """
  top_lm = pyramid.config.top_lm
  if top_lm is None or top_lm.mode == 'continuous':
    return state
  number = len(pyramid.levels) - 1
  codes_BQ = _choose_top(pyramid, state)
  state = _force_top(state, codes_BQ, prompts[-1].has_open_B)
  while number > 0:
    if pyramid.levels[number - 1].config.pooling.num_queries > 1:
      return state
    has_open_B = prompts[number - 1].has_open_B
    codes_BQ, forced = _choose_below(
      pyramid, number, state, codes_BQ, has_open_B
    )
    levels = list(state.levels)
    levels[number] = levels[number].replace(forced=forced)
    state = state.replace(levels=tuple(levels))
    number -= 1
  return state


METHODS = {
  'rescore': rescore,
  'predict': lambda pyramid, prompts, state: state,
  'as_is': as_is,
  'close': lambda pyramid, prompts, state: state,
}


def _force_top(state, codes_BQ, is_forced_B):
  return state.replace(
    top=state.top.replace(forced_BQ=codes_BQ, is_forced_B=is_forced_B)
  )


def _choose_top(pyramid: nn.Module, state: PyTree) -> Array:
  """Codes of the next slot of the top level, [B, Q]."""
  sizes = pyramid.config.levels[-1].quantizer.stage_sizes
  top_state, codes = state.top, []
  batch, queries = top_state.forced_BQ.shape
  draws = state.request.draws_of_top(len(pyramid.levels))
  everywhere_B = jnp.ones((batch,), bool)
  for _ in range(queries - 1):
    of_code = draws.fold(top_state.number_B)
    codes_B, _ = top.draw_code(
      pyramid,
      top_state.state_BY,
      of_code,
      jnp.zeros((batch,), jnp.int32),
      ~everywhere_B,
    )
    codes.append(codes_B)
    top_state = top.step(pyramid, top_state, codes_B, everywhere_B)
  count = min(NUM_CANDIDATES, sizes[0])
  nats = []

  def choose(stage, logits_NK):
    digits_N = _candidates(stage, logits_NK, count)
    nats.append(cross_entropy(logits_NK, digits_N))
    return digits_N

  digits_NM = pyramid.top_lm.code_head.decode(
    jnp.repeat(top_state.state_BY, count, axis=0), choose
  )
  last_N = digits_lib.compose(digits_NM, sizes)
  codes_NQ = jnp.stack([*(jnp.repeat(x, count) for x in codes), last_N], axis=1)
  return _choose(
    pyramid,
    len(pyramid.levels) - 1,
    state,
    codes_NQ,
    sum(nats),
    draws.fold(top_state.number_B).fold(1),
  )


def _choose_below(pyramid, number, state, codes_BQ, has_open_B):
  """The code of the level below that comes next, and what it forces here."""
  level, of_level = pyramid.levels[number], state.levels[number]
  codebooks, forced = codebooks_below(pyramid, number), of_level.forced
  _, x_BD = _follow(level, of_level, codes_BQ, codebooks, needs_state=True)
  count = min(NUM_CANDIDATES, level.expander.sizes[0])
  ids_N, nats_N = level.expander.vocabulary.draw(
    jnp.repeat(x_BD, count, axis=0),
    lambda stage, logits_NK: _candidates(stage, logits_NK, count),
    codebooks,
  )
  longest = level.config.segmentation.max_length
  of_id = of_level.slot_B * longest + forced.num_known_B
  chosen_BQ = _choose(
    pyramid,
    number - 1,
    state,
    ids_N[:, None],
    nats_N,
    state.request.draws_of_level(number).fold(of_id).fold(0),
  )
  row_B = jnp.arange(len(chosen_BQ))
  ids_BL = forced.ids_BL.at[row_B, forced.num_known_B].set(chosen_BQ[:, 0])
  return chosen_BQ, forced.replace(
    ids_BL=jnp.where(has_open_B[:, None], ids_BL, forced.ids_BL),
    num_ids_B=jnp.where(has_open_B, forced.num_known_B + 1, forced.num_ids_B),
  )


def _candidates(stage: int, logits_NK: Array, count: int) -> Array:
  """The likeliest first digits, and the best others of each."""
  if stage > 0:
    return jnp.argmax(logits_NK, axis=-1).astype(jnp.int32)
  # Rows come `count` times each.
  return lax.top_k(logits_NK[::count], count)[1].reshape(-1).astype(jnp.int32)


def _choose(
  pyramid: nn.Module,
  number: int,
  state: PyTree,
  codes_NQ: Array,
  nats_N: Array,
  draws: Draws,
) -> Array:
  """One of each row's candidates, [B, Q], in the light of what is known."""
  batch = len(draws.key_B)
  count = len(codes_NQ) // batch
  of_level = jax.tree.map(
    lambda x: jnp.repeat(x, count, axis=0), state.levels[number]
  )
  known_nats_N, _ = _follow(
    pyramid.levels[number],
    of_level,
    codes_NQ,
    codebooks_below(pyramid, number),
  )
  choice_B = draw_ids(draws, -(nats_N + known_nats_N).reshape(batch, count))
  return codes_NQ.reshape(batch, count, -1)[jnp.arange(batch), choice_B]


def _follow(level, state, codes_NQ, codebooks, needs_state=False):
  """What known ids of segments cost under codes, and the state after them.

  Returns:
    [N] float32, -log p of ids and of segments that go on after them, and [N, D]
    what the next id is predicted from; zeros unless it is needed.
  """
  expander, forced, lanes = level.expander, state.forced, len(codes_NQ)
  lookback = level.config.expander.lookback
  known_NU = jnp.concatenate([state.recent_BU, codes_NQ], axis=1)
  lowest_N1 = lookback - jnp.minimum(lookback, state.slot_B)[:, None]
  memory = (
    expander.remember(level.compressor.quantizer.lookup(known_NU)),
    jnp.full((lanes, 1), lookback),
    lowest_N1,
  )
  last = jnp.max(forced.num_known_B) + needs_state
  fed_N = jnp.full((lanes,), expander.num_ids + Special.BOS, jnp.int32)
  if state.rows is None:
    cache = expander.init_cache(lanes, level.config.segmentation.max_length)
  else:
    cache = state.rows.cache
    if not expander.is_alone:
      fed_N = state.rows.last_id_B
  group_N = state.slot_B if expander.is_alone else jnp.zeros_like(state.slot_B)

  def one_step(level, carry):
    offset, fed_N, cache, nats_N, kept_ND = carry
    offset_N = jnp.full((lanes,), offset)
    x_ND, cache = level.expander.step(
      fed_N, offset_N, group_N, cache, fed_N >= 0, memory, codebooks
    )
    ids_N = forced.ids_BL[:, offset]
    told = level.expander.vocabulary.predict(x_ND, ids_N, codebooks)
    of_id_N = level.expander.vocabulary.nats(told, ids_N)
    if level.config.expander.ends == 'head':
      log_odds_N = level.expander.end_logits(x_ND, ids_N, codebooks)
      of_id_N += jax.nn.softplus(log_odds_N)
    is_known_N = offset < forced.num_known_B
    nats_N += jnp.where(is_known_N, of_id_N, 0.0)
    is_next_N = offset == forced.num_known_B
    kept_ND = jnp.where(is_next_N[:, None], x_ND, kept_ND)
    return offset + 1, ids_N, cache, nats_N, kept_ND

  carry = (
    jnp.zeros((), jnp.int32),
    fed_N,
    cache,
    jnp.zeros((lanes,), jnp.float32),
    jnp.zeros((lanes, level.config.d_model), level.dtype),
  )
  carry = nn.while_loop(
    lambda _, carry: carry[0] < last, one_step, level, carry
  )
  return carry[3:]
