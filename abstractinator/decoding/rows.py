"""Decoding loop of one id per row and step, for every context and kind of ends.

Codes are taken in turn: an id that opens a segment attends to the code of the
next slot. `lanes.decode_lanes` is the faster loop for segments that see no ids
of each other.
"""

import dataclasses

import flax.struct
import jax.numpy as jnp

from abstractinator.decoding import ends as entropy_ends
from abstractinator.decoding.choices import Choice, Greedy
from abstractinator.decoding.ends import EntropyEnds
from abstractinator.decoding.loop import Module, while_loop
from abstractinator.decoding.prompt import LevelPrompt
from abstractinator.decoding.segments import (
  CodeSource,
  Expanded,
  NextIds,
  empty_expanded,
)
from abstractinator.decoding.stream import StreamState
from abstractinator.model.entropy_model import Prior
from abstractinator.model.level import Abstractinator
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.types import Array, Special


@flax.struct.dataclass
class RowsState:
  """State of rows whose next id opens a segment, one entry per row.

  Attributes:
    fed_B: Last id, or BOS where the next id begins a document, [B] int32.
    cache: KV cache of the expander, all ids before the last read.
    entropy: State of the entropy model, the last id read; None where a head
      says the ends.
  """

  fed_B: Array
  cache: Cache
  entropy: EntropyEnds | None


@flax.struct.dataclass
class _RowsLoop(RowsState):
  """State of the loop, in which the next id may also continue a segment.

  Attributes:
    document_B: Document of the next id, [B] int32.
    slot_B: Segment of the call of the last id, [B] int32; -1 before the first.
    offset_B: Position of the last id in its segment, [B] int32.
    opens_B: Whether the next id opens a segment, [B] bool.
    num_new_B: New ids of the call so far, [B] int32.
    is_done_B: Rows that decode no more ids, [B] bool.
    x_BD: State that the last id was predicted from, [B, D].
  """

  document_B: Array
  slot_B: Array
  offset_B: Array
  opens_B: Array
  num_new_B: Array
  is_done_B: Array
  x_BD: Array


@flax.struct.dataclass
class RowsEnd:
  """State of rows in which a call of `decode_rows` left them.

  Attributes:
    x_BD: States that the last ids were predicted from, [B, D].
    is_done_B: Rows that ended before their last segment, [B] bool.
    stream: State of the stream of codes; None if they were given.
  """

  x_BD: Array
  is_done_B: Array
  stream: StreamState | None


def start_after_prompt(
  level: Abstractinator,
  prompt: LevelPrompt,
  codebooks: Codebooks | None,
  capacity: int,
  states_BUY: Array | None = None,
) -> RowsState:
  """Reads the whole segments of a prompt.

  Args:
    level: A bound level.
    prompt: Ids of the level and their segments.
    codebooks: Codebooks of the level below; None over bytes.
    capacity: Ids that a row may come to.
    states_BUY: States from which the top LM predicts the codes, [B, U, Y]; see
      `DecoderOnlyExpanderRVQ.memory`.

  Returns:
    The state whose next id opens the segment after them.
  """
  batch, size = prompt.ids_BS.shape
  index_BS, document_BS = prompt.segments.index_BS, prompt.whole_documents()
  _, cache = level.expander.prefill(
    prompt.ids_BS,
    document_BS,
    dataclasses.replace(
      prompt.segments, index_BS=jnp.where(document_BS >= 0, index_BS, -1)
    ),
    level.expander.memory(prompt.vectors_BUD, states_BUY),
    level.expander.init_cache(batch, max(capacity, size)),
    codebooks,
    prompt.prior if level.expander.has_prior else None,
  )
  before_B = prompt.count_B - prompt.open.num_ids_B
  last_B = prompt.ids_BS[jnp.arange(batch), jnp.maximum(before_B - 1, 0)]
  bos = level.expander.num_ids + Special.BOS
  entropy = None
  if level.config.expander.ends == 'entropy':
    # The ids of an open segment are read again as they are decoded.
    _, whole = level.compressor.prefill(
      prompt.ids_BS, document_BS, capacity=max(capacity, size)
    )
    entropy = EntropyEnds(
      whole.entropy_cache, whole.segmenter, Prior.of(whole.predicted)
    )
  return RowsState(jnp.where(before_B > 0, last_B, bos), cache, entropy)


def decode_rows(
  module: Module,
  state: RowsState,
  codes: CodeSource,
  count_B: Array,
  limit_B: Array,
  choice: Choice,
  codebooks: Codebooks | None = None,
  *,
  first_slot_B: Array | None = None,
  stream: StreamState | None = None,
) -> tuple[Expanded, RowsState, RowsEnd]:
  """Decodes segments of rows, one id per row and step.

  A row is done after its last segment or `limit_B` new ids. If `first_slot_B`
  is None, a row holds several documents: EOS ends one, and the id after it is
  predicted from BOS and sees no earlier id. At a level without EOS the last
  segment of a document ends it, the one before a slot that attends to no slot
  before it. Otherwise a row is one document and ends at EOS.

  Args:
    module: A bound level; a bound pyramid whose top level decodes if codes are
      a stream.
    state: State after the previous call or after a prompt.
    codes: Codes that the segments attend to, given or as a stream.
    count_B: Segments of each row, the first ones of `codes`, [B] int32.
    limit_B: New ids after which a row is done, [B] int32.
    choice: Chooses ids, and ends where a head says them.
    codebooks: Codebooks of the level below; None over bytes.
    first_slot_B: Number of the call's first segment in its document, [B] int32.
    stream: State of the stream of codes; None if they are given.

  Returns:
    The decoded ids, the state, and how the call ended.
  """
  batch, slots = codes.lowest_BP.shape
  row_B = jnp.arange(batch)
  has_documents = first_slot_B is None
  first_B = 0 if first_slot_B is None else first_slot_B

  def is_active(loop):
    return ~loop.is_done_B & (loop.slot_B + loop.opens_B < count_B)

  def one_step(module, carry):
    loop, out, stream = carry
    level = codes.level(module)
    is_active_B = is_active(loop)
    loop = _next_position(loop, is_active_B)
    loop, stream = _open(
      module, loop, stream, codes, is_active_B, has_documents
    )
    is_active_B &= ~loop.is_done_B
    number_B = first_B + loop.slot_B
    at, cache = _expander_step(
      level, loop, is_active_B, codes, stream, number_B, codebooks
    )
    ids_B = choice.ids(at)
    where = (row_B, jnp.where(is_active_B, at.slot_N, slots), at.offset_N)
    out = out.record(where, ids_B, choice.nats(at, ids_B))
    stream = codes.read(module, stream, loop, ids_B, is_active_B)
    loop = dataclasses.replace(loop, cache=cache)
    loop = _take(
      level, loop, is_active_B, at, ids_B, limit_B, choice, has_documents
    )
    return loop, out, stream

  level = codes.level(module)
  longest = level.config.segmentation.max_length
  out = empty_expanded(batch, slots, longest, has_nats=choice.has_nats)
  loop, out, stream = while_loop(
    lambda carry: jnp.any(is_active(carry[0])),
    one_step,
    module,
    (_begin(level, state, limit_B), out, stream),
  )
  return (
    out,
    RowsState(loop.fed_B, loop.cache, loop.entropy),
    RowsEnd(loop.x_BD, loop.is_done_B, stream),
  )


def decode_greedily(
  module: Module,
  codes: CodeSource,
  is_valid_BP: Array,
  sequence_length: int,
  codebooks: Codebooks | None = None,
  stream: StreamState | None = None,
) -> tuple[Array, Array]:
  """Decodes whole rows of codes to their most likely ids.

  Args:
    module: A bound level, or a pyramid; see `decode_rows`.
    codes: Codes that the segments attend to.
    is_valid_BP: Slots with a segment, the first ones of a row, [B, P] bool.
    sequence_length: S, the most ids of a row; the last segment is cut there.
    codebooks: Codebooks of the level below; None over bytes.
    stream: State of the stream of codes; None if they are given.

  Returns:
    Ids [B, P, L] int32, 0 past a segment's end, and lengths [B, P] int32, 0 for
    segments without an id.
  """
  level, batch = codes.level(module), len(is_valid_BP)
  entropy = None
  if level.config.expander.ends == 'entropy':
    entropy = entropy_ends.start(level, batch, sequence_length)
  bos_B = jnp.full((batch,), level.num_ids + Special.BOS, jnp.int32)
  cache = level.expander.init_cache(batch, sequence_length)
  out, _, _ = decode_rows(
    module,
    RowsState(bos_B, cache, entropy),
    codes,
    jnp.sum(is_valid_BP, axis=1, dtype=jnp.int32),
    jnp.full((batch,), sequence_length, jnp.int32),
    Greedy(),
    codebooks,
    stream=stream,
  )
  return out.ids_BPL, out.length_BP


def _begin(
  level: Abstractinator, state: RowsState, limit_B: Array
) -> _RowsLoop:
  """Returns the loop before its first id, which opens a segment."""
  zero_B = jnp.zeros_like(limit_B)
  return _RowsLoop(
    fed_B=state.fed_B,
    cache=state.cache,
    entropy=state.entropy,
    document_B=zero_B,
    slot_B=zero_B - 1,
    offset_B=zero_B,
    opens_B=zero_B == 0,
    num_new_B=zero_B,
    is_done_B=limit_B <= 0,
    x_BD=jnp.zeros((len(limit_B), level.config.d_model), level.dtype),
  )


def _next_position(loop: _RowsLoop, is_active_B: Array) -> _RowsLoop:
  """Goes on to the position of the next id in active rows."""
  offset_B = jnp.where(loop.opens_B, 0, loop.offset_B + 1)
  return dataclasses.replace(
    loop,
    slot_B=loop.slot_B + (is_active_B & loop.opens_B),
    offset_B=jnp.where(is_active_B, offset_B, loop.offset_B),
  )


def _open(
  module: Module,
  loop: _RowsLoop,
  stream: StreamState | None,
  codes: CodeSource,
  is_active_B: Array,
  has_documents: bool,
) -> tuple[_RowsLoop, StreamState | None]:
  """Takes the codes of segments that open; rows may be done without one."""
  level, slots = codes.level(module), codes.lowest_BP.shape[1]
  opens_B = is_active_B & loop.opens_B
  if has_documents and not level.expander.has_eos:
    slot_B = jnp.clip(loop.slot_B, 0, slots - 1)
    lowest_B = codes.lowest_BP[jnp.arange(len(slot_B)), slot_B]
    is_first_B = lowest_B == codes.num_before + slot_B
    loop = _open_document(level, loop, opens_B & is_first_B)
  stream, is_over_B = codes.open(module, stream, loop, opens_B)
  is_done_B = loop.is_done_B | is_over_B
  return dataclasses.replace(loop, is_done_B=is_done_B), stream


def _open_document(
  level: Abstractinator, loop: _RowsLoop, is_first_B: Array
) -> _RowsLoop:
  """Begins a document at a slot that attends to no slot before it.

  Only now is it known; a head, which says the ends at such a level, needs no
  document.
  """
  bos = level.num_ids + Special.BOS
  return dataclasses.replace(
    loop,
    fed_B=jnp.where(is_first_B, bos, loop.fed_B),
    document_B=loop.document_B + is_first_B,
  )


def _expander_step(
  level: Abstractinator,
  loop: _RowsLoop,
  is_active_B: Array,
  codes: CodeSource,
  stream: StreamState | None,
  number_B: Array,
  codebooks: Codebooks | None,
) -> tuple[NextIds, Cache]:
  """Computes what the next ids are predicted from.

  `number_B` tells segments of a row apart where they see no ids of each other.
  """
  fed_B, group_B = loop.fed_B, loop.document_B
  slots = codes.lowest_BP.shape[1]
  if level.expander.is_alone:
    bos = level.expander.num_ids + Special.BOS
    fed_B = jnp.where(loop.opens_B, bos, fed_B)
    group_B = number_B
  prior = base_BV = None
  if level.expander.has_prior:
    assert loop.entropy is not None, "base 'entropy_model': no ends 'entropy'"
    prior, base_BV = loop.entropy.prior, loop.entropy.prior.logits
  x_BD, cache = level.expander.step(
    fed_B,
    loop.offset_B,
    group_B,
    loop.cache,
    is_active_B,
    codes.seen(stream, jnp.clip(loop.slot_B, 0, slots - 1)),
    codebooks,
    prior,
  )
  spelling = codes.spelling(
    stream, loop.slot_B[:, None], loop.offset_B[:, None]
  )
  at = NextIds(
    level.expander,
    codebooks,
    x_BD,
    loop.slot_B,
    loop.offset_B,
    base_BV,
    spelling,
  )
  return at, cache


def _take(
  level: Abstractinator,
  loop: _RowsLoop,
  is_active_B: Array,
  at: NextIds,
  ids_B: Array,
  limit_B: Array,
  choice: Choice,
  has_documents: bool,
) -> _RowsLoop:
  """Takes the ids of a step: ends of segments, of documents and of rows."""
  expander = level.expander
  is_eos_B = ids_B == expander.num_ids + Special.EOS
  num_new_B = loop.num_new_B + (is_active_B & choice.is_new(at))
  ends_row_B = num_new_B >= limit_B
  fed_B, document_B = ids_B, loop.document_B
  if has_documents:
    fed_B = jnp.where(is_eos_B, expander.num_ids + Special.BOS, ids_B)
    document_B = document_B + is_eos_B
  else:
    ends_row_B |= is_eos_B
  is_done_B = loop.is_done_B | (is_active_B & ends_row_B)
  entropy = loop.entropy
  if entropy is None:
    opens_B = choice.ends(at, ids_B)
  else:
    entropy, opens_B = entropy_ends.after(
      level, entropy, ids_B, fed_B, document_B, is_active_B & ~is_done_B
    )
  opens_B = at.ends(opens_B) & choice.may_end(at)
  return dataclasses.replace(
    loop,
    x_BD=jnp.where(is_active_B[:, None], at.x_ND, loop.x_BD),
    fed_B=jnp.where(is_active_B, fed_B, loop.fed_B),
    document_B=jnp.where(is_active_B, document_B, loop.document_B),
    opens_B=jnp.where(is_active_B, opens_B | is_eos_B, loop.opens_B),
    num_new_B=num_new_B,
    is_done_B=is_done_B,
    entropy=entropy,
  )
