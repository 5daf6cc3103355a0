"""Codes of segments that a prompt leaves open.

A prompt ends within a segment of a level, whose code depends on bytes to come
and must be chosen before they are. It is drawn from p(code | codes before, ids
of the segment): the most likely codes under what predicts them (the top LM, or
the expander above) are weighted by how likely each makes the known ids of the
segment, and its not ending after any of them. The known ids are kept.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from optax.losses import softmax_cross_entropy_with_integer_labels

from abstractinator.decoding import expansion, stream, top_codes
from abstractinator.decoding.choices import Told
from abstractinator.decoding.expansion import ExpansionState
from abstractinator.decoding.prompt import LevelPrompt, codebooks_below
from abstractinator.decoding.rows import RowsState, decode_rows
from abstractinator.decoding.segments import Expanded, KnownIds
from abstractinator.decoding.state import GenerationState
from abstractinator.model.level import Abstractinator
from abstractinator.model.pyramid import Pyramid
from abstractinator.model.top_lm import CodePrior
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops.sampling import Draws, draw_ids
from abstractinator.types import Array, Special

NUM_CANDIDATES = 32


def choose_codes(
  pyramid: Pyramid, prompts: Sequence[LevelPrompt], state: GenerationState
) -> GenerationState:
  """Draws codes of open segments given their known ids, from the top down.

  Without a top LM the state stays as it is: `top_codes` repeats the last code.
  The prediction of a continuous top LM is taken as it is.

  If a segment has several codes, only the last one is drawn so at the top
  level, after the others were drawn without regard to the ids; below the top
  level none is. The known ids of a level above the first are codes of whole
  segments below.

  Args:
    pyramid: A bound pyramid.
    prompts: Prompts at each level, bottom first.
    state: State after their whole segments.

  Returns:
    The state with these codes forced.
  """
  top_lm = pyramid.config.top_lm
  if top_lm is None or top_lm.mode == 'continuous':
    return state
  codes_BQ = _choose_top(pyramid, state)
  top = dataclasses.replace(
    state.top, forced_BQ=codes_BQ, is_forced_B=prompts[-1].has_open_B
  )
  levels = list(state.levels)
  for number in range(len(levels) - 1, 0, -1):
    if pyramid.levels[number - 1].config.pooling.num_queries > 1:
      break
    has_open_B = prompts[number - 1].has_open_B
    codes_BQ, known = _choose_below(
      pyramid, number, state, codes_BQ, has_open_B
    )
    levels[number] = dataclasses.replace(levels[number], known=known)
  return dataclasses.replace(state, top=top, levels=tuple(levels))


def _choose_top(pyramid: Pyramid, state: GenerationState) -> Array:
  """Draws the codes of the next slot of the top level, [B, Q] int32."""
  draws = state.request.draws_of_top(len(pyramid.levels))
  last = _last_code(pyramid, state, draws)
  count = min(
    NUM_CANDIDATES, pyramid.config.levels[-1].quantizer.stage_sizes[0]
  )
  hidden_NY, prior, *codes = jax.tree.map(
    lambda x: jnp.repeat(x, count, axis=0),
    (last.hidden_BY, last.prior, *last.codes),
  )
  nats = []

  def choose(stage: int, logits_NK: Array) -> Array:
    digits_N = _candidates(stage, logits_NK, count)
    nats.append(softmax_cross_entropy_with_integer_labels(logits_NK, digits_N))
    return digits_N

  last_N = pyramid.top_lm.draw_code(hidden_NY, prior, choose)
  return _choose(
    pyramid,
    len(pyramid.levels) - 1,
    state,
    jnp.stack([*codes, last_N], axis=1),
    sum(nats),
    draws.fold(last.number_B).fold(1),
    hidden_NY,
  )


@dataclasses.dataclass(frozen=True)
class _LastCode:
  """Place of the last code of the next slot of the top level.

  Attributes:
    hidden_BY: State that it is predicted from, [B, Y].
    prior: Prediction of the first id of its segment, [B]; None without
      `top_lm.base`.
    number_B: Its number in the document, [B] int32.
    codes: Codes before it in the slot, drawn without regard to ids, [B] int32
      each.
  """

  hidden_BY: Array
  prior: CodePrior | None
  number_B: Array
  codes: tuple[Array, ...] = ()


def _last_code(
  pyramid: Pyramid, state: GenerationState, draws: Draws
) -> _LastCode:
  """Goes to the last code of the next slot of the top level."""
  top, codes = state.top, list[Array]()
  batch, queries = top.forced_BQ.shape
  everywhere_B = jnp.ones((batch,), bool)
  if top.stream is not None:
    rows = state.levels[-1].rows
    opened = stream.predict(
      pyramid,
      top.stream,
      jnp.zeros((batch,), jnp.int32),
      everywhere_B,
      None if rows is None or rows.entropy is None else rows.entropy.prior,
    )
    return _LastCode(opened.hidden_BY, opened.prior, opened.number_B)
  top_lm, number_B = top.top_lm, top.number_B
  assert top_lm is not None, 'the pyramid has no top LM'
  for _ in range(queries - 1):
    codes_B = top_codes.draw_code(
      pyramid, top_lm.hidden_BY, draws.fold(number_B)
    )
    codes.append(codes_B)
    top_lm = top_codes.step(pyramid, top_lm, codes_B, everywhere_B)
    number_B = number_B + 1
  return _LastCode(top_lm.hidden_BY, None, number_B, tuple(codes))


def _choose_below(
  pyramid: Pyramid,
  number: int,
  state: GenerationState,
  codes_BQ: Array,
  has_open_B: Array,
) -> tuple[Array, KnownIds]:
  """Draws the next code of the level below, the next id of this level.

  Args:
    pyramid: A bound pyramid.
    number: Number of this level.
    state: State after the whole segments of the prompts.
    codes_BQ: Codes of the open segment of this level, [B, Q] int32.
    has_open_B: Rows with an open segment below, [B] bool.

  Returns:
    Codes of the open segment below, [B, 1] int32, and the known ids of this
    level with the code among them.
  """
  level, of_level = pyramid.levels[number], state.levels[number]
  codebooks, known = codebooks_below(pyramid, number), of_level.known
  _, x_BD = _decode_known(level, of_level, codes_BQ, codebooks, one_more=True)
  count = min(NUM_CANDIDATES, level.expander.sizes[0])
  ids_N, nats_N = level.expander.vocabulary.draw(
    jnp.repeat(x_BD, count, axis=0),
    lambda stage, logits_NK: _candidates(stage, logits_NK, count),
    codebooks,
  )
  longest = level.config.segmentation.max_length
  of_id = of_level.slot_B * longest + known.num_known_B
  chosen_BQ = _choose(
    pyramid,
    number - 1,
    state,
    ids_N[:, None],
    nats_N,
    state.request.draws_of_level(number).fold(of_id).fold(0),
  )
  row_B = jnp.arange(len(chosen_BQ))
  ids_BL = known.ids_BL.at[row_B, known.num_known_B].set(chosen_BQ[:, 0])
  return chosen_BQ, KnownIds(
    ids_BL=jnp.where(has_open_B[:, None], ids_BL, known.ids_BL),
    num_known_B=known.num_known_B,
    num_ids_B=jnp.where(has_open_B, known.num_known_B + 1, known.num_ids_B),
  )


def _candidates(stage: int, logits_NK: Array, count: int) -> Array:
  """Returns the `count` likeliest first digits, and the best others of each.

  Rows of logits come `count` times each.
  """
  if stage > 0:
    return jnp.argmax(logits_NK, axis=-1).astype(jnp.int32)
  return lax.top_k(logits_NK[::count], count)[1].reshape(-1).astype(jnp.int32)


def _choose(
  pyramid: Pyramid,
  number: int,
  state: GenerationState,
  codes_NQ: Array,
  nats_N: Array,
  draws: Draws,
  states_NY: Array | None = None,
) -> Array:
  """Draws one of each row's candidates, given the known ids of their segment.

  Args:
    pyramid: A bound pyramid.
    number: Number of the level of the codes.
    state: State after the whole segments of the prompts.
    codes_NQ: Candidates, those of a row side by side, [N, Q] int32.
    nats_N: Their -log p given the codes before them, [N] float32.
    draws: Random keys and filters of this draw.
    states_NY: States from which the top LM predicts them, [N, Y], if the
      expander is conditioned on them.

  Returns:
    [B, Q] int32.
  """
  batch = len(draws.key_B)
  count = len(codes_NQ) // batch
  decoded, _ = _decode_known(
    pyramid.levels[number],
    jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), state.levels[number]),
    codes_NQ,
    codebooks_below(pyramid, number),
    states_NY,
  )
  assert decoded.nats_BPL is not None, 'Told has costs'
  nats_N = nats_N + jnp.sum(decoded.nats_BPL[:, 0], axis=1)
  choice_B = draw_ids(draws, -nats_N.reshape(batch, count))
  return codes_NQ.reshape(batch, count, -1)[jnp.arange(batch), choice_B]


def _decode_known(
  level: Abstractinator,
  state: ExpansionState,
  codes_NQ: Array,
  codebooks: Codebooks | None,
  states_NY: Array | None = None,
  *,
  one_more: bool = False,
) -> tuple[Expanded, Array]:
  """Decodes candidate codes of open segments to the known ids.

  Args:
    level: A bound level.
    state: State of the level, one entry per candidate.
    codes_NQ: Candidate codes of the segments, [N, Q] int32.
    codebooks: Codebooks of the level below; None over bytes.
    states_NY: States from which the top LM predicts the codes, [N, Y], if the
      expander is conditioned on them.
    one_more: Whether the state of the id after the known ones is computed.

  Returns:
    The known ids with their costs, and the states that the last of these ids
    was predicted from, [N, D].
  """
  expander, known, rows = level.expander, state.known, state.rows
  if rows is None:
    lanes = len(codes_NQ)
    bos_N = jnp.full((lanes,), expander.num_ids + Special.BOS, jnp.int32)
    cache = expander.init_cache(lanes, level.config.segmentation.max_length)
    rows = RowsState(bos_N, cache, None)
  if not expander.has_prior:
    # The known ids do not end their segments: no rule is needed.
    rows = dataclasses.replace(rows, entropy=None)
  states_NUY = None if states_NY is None else states_NY[:, None]
  decoded, _, end = decode_rows(
    level,
    rows,
    expansion.segment_codes(level, state, codes_NQ, states_NUY),
    jnp.ones((len(codes_NQ),), jnp.int32),
    known.num_known_B + one_more,
    Told(known),
    codebooks,
    first_slot_B=state.slot_B,
  )
  return decoded, end.x_BD
