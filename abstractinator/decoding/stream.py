"""Top codes that are predicted while their level decodes, one after the other.

Where `ModelConfig.streams`, `rows.decode_rows` asks a `StreamCodes` for each
code as its segment opens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.decoding import ends
from abstractinator.decoding.prompt import LevelPrompt, below_of
from abstractinator.decoding.segments import flat_spelling
from abstractinator.model.attention import CodeKeyValues
from abstractinator.model.entropy_model import Prior
from abstractinator.model.level import Abstractinator
from abstractinator.model.pyramid import Pyramid
from abstractinator.model.top_lm import CodePrior
from abstractinator.model.transformer import StepCodes
from abstractinator.ops.cache import Cache
from abstractinator.ops.dictionary import Spelling
from abstractinator.types import Array


@flax.struct.dataclass
class StreamState:
  """State of the top LM beside the loop that decodes the top level.

  Attributes:
    cache: KV cache of the top LM.
    hidden_BY: State after the last segment that it has read, from which the
      code of the open segment is predicted, [B, Y].
    prior: Prediction of the first id of that segment, [B]; None without
      `top_lm.base`.
    code_B: Code of the open segment, [B] int32.
    document_B: Document of the open segment, [B] int32; -1 before the first.
    number_B: Number of the open segment in its document, [B] int32.
    is_unread_B: Whether the open segment has an id, so that the top LM must
      read it before the next code, [B] bool.
    encoder_cache: KV cache of the encoder.
    encoded_BLD: States of the encoder for the ids of the open segment, [B, L,
      D].
    length_B: Ids of the open segment so far, [B] int32.
    remembered: Code of the open segment, to which ids attend, projected for
      each block.
    spelled_B1L: Segment of this code; see `Quantizer.spell`.
  """

  cache: Cache
  hidden_BY: Array
  prior: CodePrior | None
  code_B: Array
  document_B: Array
  number_B: Array
  is_unread_B: Array
  encoder_cache: Cache
  encoded_BLD: Array
  length_B: Array
  remembered: list[CodeKeyValues]
  spelled_B1L: Array | None


# Function that chooses codes: from the pyramid, the stream as its segments
# open, and the slots of the call, [B] int32, to codes, [B] int32, and the rows
# whose documents end in place of a code, [B] bool.
ChooseCodes = Callable[[Pyramid, StreamState, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class StreamCodes:
  """Source of codes for `rows.decode_rows` of the top level.

  Attributes:
    choose: Chooses the codes.
    lowest_BP: First slot of the document of each slot of the call, [B, P]
      int32.
  """

  choose: ChooseCodes
  lowest_BP: Array
  num_before: int = 0

  def level(self, pyramid: Pyramid) -> Abstractinator:
    """Returns the level that decodes."""
    return pyramid.levels[-1]

  def open(
    self,
    pyramid: Pyramid,
    state: StreamState,
    place: Any,
    opens_B: Array,
  ) -> tuple[StreamState, Array]:
    """Chooses the codes of segments that open.

    Args:
      pyramid: A bound pyramid.
      state: State after the ids before.
      place: Place of the next ids; see `CodeSource`.
      opens_B: Rows whose next id opens a segment, [B] bool.

    Returns:
      The state, and the rows whose documents end here, [B] bool.
    """

    def run(pyramid: Pyramid, state: StreamState) -> tuple[StreamState, Array]:
      prior = None if place.entropy is None else place.entropy.prior
      predicted = predict(pyramid, state, place.document_B, opens_B, prior)
      codes_B, is_over_B = self.choose(pyramid, predicted, place.slot_B)
      return take(pyramid, predicted, codes_B, opens_B), opens_B & is_over_B

    def skip(_: Pyramid, state: StreamState) -> tuple[StreamState, Array]:
      return state, jnp.zeros_like(opens_B)

    return nn.cond(jnp.any(opens_B), run, skip, pyramid, state)

  def seen(self, state: StreamState, slot_B: Array) -> StepCodes:
    """Returns the codes that the next ids attend to."""
    zero_B1 = jnp.zeros_like(slot_B)[:, None]
    return StepCodes(state.remembered, zero_B1, zero_B1)

  def spelling(
    self, state: StreamState, slot_RT: Array, offset_RT: Array
  ) -> Spelling | None:
    """Returns what the codes of open segments say about ids at offsets."""
    # There is but one code.
    return flat_spelling(state.spelled_B1L, jnp.zeros_like(slot_RT), offset_RT)

  def read(
    self,
    pyramid: Pyramid,
    state: StreamState,
    place: Any,
    ids_B: Array,
    active_B: Array,
  ) -> StreamState:
    """Reads decoded ids; see `read`."""
    return read(pyramid, state, ids_B, place.offset_B, active_B)


def empty(pyramid: Pyramid, batch_size: int, capacity: int) -> StreamState:
  """Returns the state before the first segment of rows.

  Args:
    pyramid: A bound pyramid with a top LM.
    batch_size: Rows, B.
    capacity: Ids of the top level, and so segments, that a row may come to.
  """
  level, top_lm = pyramid.levels[-1], pyramid.top_lm
  zero_B = jnp.zeros((batch_size,), jnp.int32)
  longest, width = level.config.segmentation.max_length, level.config.d_model
  return StreamState(
    cache=top_lm.init_cache(batch_size, capacity),
    hidden_BY=top_lm.start_state(batch_size),
    prior=pyramid.code_prior(ends.no_prior(level, batch_size)),
    code_B=zero_B,
    document_B=zero_B - 1,
    number_B=zero_B,
    is_unread_B=zero_B > 0,
    encoder_cache=level.compressor.encoder.init_cache(
      batch_size, capacity, level.dtype
    ),
    encoded_BLD=jnp.zeros((batch_size, longest, width), level.dtype),
    length_B=zero_B,
    remembered=level.expander.remember(
      jnp.zeros((batch_size, 1, width), level.dtype)
    ),
    spelled_B1L=level.compressor.quantizer.spell(zero_B[:, None]),
  )


def after_prompt(
  pyramid: Pyramid, prompt: LevelPrompt, capacity: int
) -> tuple[StreamState, Array]:
  """Reads the whole segments of a prompt.

  Args:
    pyramid: A bound pyramid with a top LM.
    prompt: Prompts at the top level.
    capacity: Ids of the top level, and so segments, that a row may come to.

  Returns:
    The state, and the states from which the codes of the segments are
    predicted, [B, U, Y].
  """
  batch, size = prompt.codes_BU.shape
  level, top_lm = pyramid.levels[-1], pyramid.top_lm
  state = empty(pyramid, batch, max(capacity, size))
  is_whole_BU = jnp.arange(size) < prompt.num_whole_B[:, None]
  document_BU = jnp.where(is_whole_BU, 0, -1).astype(jnp.int32)
  reads_segments = top_lm.config.inputs == 'segments'
  hidden_BUY, cache = top_lm.prefill(
    prompt.segments_BUD if reads_segments else prompt.vectors_BUD,
    document_BU,
    state.cache,
  )
  encoder_cache = state.encoder_cache
  if reads_segments:
    encoder_cache = level.compressor.read(
      prompt.ids_BS,
      prompt.whole_documents(),
      prompt.segments,
      encoder_cache,
      below_of(pyramid, len(pyramid.levels) - 1, prompt.ids_BS),
    )
  before_BUY = top_lm.before(hidden_BUY, document_BU)
  last_BY = hidden_BUY[
    jnp.arange(batch), jnp.maximum(prompt.num_whole_B - 1, 0)
  ]
  has_any_B = prompt.num_whole_B > 0
  state = dataclasses.replace(
    state,
    cache=cache,
    hidden_BY=jnp.where(has_any_B[:, None], last_BY, state.hidden_BY),
    document_B=jnp.where(has_any_B, 0, -1),
    number_B=prompt.num_whole_B - has_any_B,
    encoder_cache=encoder_cache,
  )
  return state, before_BUY


def predict(
  pyramid: Pyramid,
  state: StreamState,
  document_B: Array,
  opens_B: Array,
  prior: Prior | None,
) -> StreamState:
  """Reads the segments before, and predicts the codes of those that open.

  Args:
    pyramid: A bound pyramid with a top LM.
    state: State after all ids before.
    document_B: Document of the next ids, [B] int32.
    opens_B: Rows whose next id opens a segment; the others keep their state,
      [B] bool.
    prior: Prediction of the next ids by the entropy model, [B]; None where it
      does not run along.

  Returns:
    The state, `hidden_BY` and `prior` those from which the new codes are
    predicted.
  """
  level, top_lm = pyramid.levels[-1], pyramid.top_lm
  if top_lm.config.inputs == 'segments':
    vectors_BD = level.compressor.pool(state.encoded_BLD, state.length_B)
  else:
    lookup = level.compressor.quantizer.lookup
    vectors_BD = lookup(state.code_B[:, None])[:, 0]
  reads_B = opens_B & state.is_unread_B
  hidden_BY, cache = top_lm.step(
    vectors_BD, state.document_B, state.cache, reads_B
  )
  hidden_BY = jnp.where(reads_B[:, None], hidden_BY, state.hidden_BY)
  is_first_B = opens_B & (document_B != state.document_B)
  start_BY = top_lm.start_state(len(opens_B))
  hidden_BY = jnp.where(is_first_B[:, None], start_BY, hidden_BY)
  number_B = jnp.where(is_first_B, 0, state.number_B + opens_B)
  return dataclasses.replace(
    state,
    cache=cache,
    hidden_BY=hidden_BY,
    prior=None if prior is None else pyramid.code_prior(prior),
    document_B=jnp.where(opens_B, document_B, state.document_B),
    number_B=number_B,
    is_unread_B=state.is_unread_B & ~opens_B,
    length_B=jnp.where(opens_B, 0, state.length_B),
  )


def take(
  pyramid: Pyramid, state: StreamState, codes_B: Array, opens_B: Array
) -> StreamState:
  """Takes codes for the segments that open.

  Args:
    pyramid: A bound pyramid with a top LM.
    state: State from `predict`.
    codes_B: The codes, [B] int32.
    opens_B: Rows that take theirs, [B] bool.

  Returns:
    The state whose segments have these codes.
  """
  level, codes_B1 = pyramid.levels[-1], codes_B[:, None]
  quantizer = level.compressor.quantizer
  memory_B1D = level.expander.memory(
    quantizer.lookup(codes_B1), state.hidden_BY[:, None]
  )
  opened = level.expander.remember(memory_B1D), quantizer.spell(codes_B1)

  def where_open(new: Array, old: Array) -> Array:
    return jnp.where(opens_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)

  remembered, spelled_B1L = jax.tree.map(
    where_open, opened, (state.remembered, state.spelled_B1L)
  )
  return dataclasses.replace(
    state,
    code_B=jnp.where(opens_B, codes_B, state.code_B),
    remembered=remembered,
    spelled_B1L=spelled_B1L,
  )


def read(
  pyramid: Pyramid,
  state: StreamState,
  ids_B: Array,
  offset_B: Array,
  active_B: Array,
) -> StreamState:
  """Reads decoded ids of the open segments with the encoder, if it is needed.

  Args:
    pyramid: A bound pyramid with a top LM.
    state: State before the ids.
    ids_B: The ids, [B] int32.
    offset_B: Their positions in their segments, [B] int32.
    active_B: Rows that have an id, [B] bool.

  Returns:
    The state after the ids.
  """
  is_unread_B = state.is_unread_B | active_B
  state = dataclasses.replace(state, is_unread_B=is_unread_B)
  if pyramid.top_lm.config.inputs != 'segments':
    return state
  level = pyramid.levels[-1]
  number_B, longest = state.number_B, state.encoded_BLD.shape[1]
  if level.config.encoder_context == 'document':
    number_B = state.document_B
  below = below_of(pyramid, len(pyramid.levels) - 1, ids_B[:, None])
  x_BD, cache = level.compressor.read_next(
    ids_B, number_B, state.encoder_cache, active_B, below
  )
  at_B = jnp.where(active_B, offset_B, longest)
  encoded_BLD = state.encoded_BLD.at[jnp.arange(len(ids_B)), at_B].set(
    x_BD, mode='drop'
  )
  return dataclasses.replace(
    state,
    encoder_cache=cache,
    encoded_BLD=encoded_BLD,
    length_B=jnp.where(active_B, offset_B + 1, state.length_B),
  )
