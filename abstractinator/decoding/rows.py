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
from abstractinator.decoding.loop import while_loop
from abstractinator.decoding.prompt import LevelPrompt
from abstractinator.decoding.segments import (
  Expanded,
  NextIds,
  SegmentCodes,
  empty_expanded,
)
from abstractinator.model.level import Abstractinator
from abstractinator.model.transformer import StepCodes
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


def start_after_prompt(
  level: Abstractinator,
  prompt: LevelPrompt,
  codebooks: Codebooks | None,
  capacity: int,
) -> RowsState:
  """Reads the whole segments of a prompt.

  Args:
    level: A bound level.
    prompt: Ids of the level and their segments.
    codebooks: Codebooks of the level below; None over bytes.
    capacity: Ids that a row may come to.

  Returns:
    The state whose next id opens the segment after them.
  """
  batch, size = prompt.ids_BS.shape
  index_BS = prompt.segments.index_BS
  is_whole_BS = (index_BS >= 0) & (index_BS < prompt.num_whole_B[:, None])
  _, cache = level.expander.prefill(
    prompt.ids_BS,
    jnp.where(is_whole_BS, 0, -1).astype(jnp.int32),
    dataclasses.replace(
      prompt.segments, index_BS=jnp.where(is_whole_BS, index_BS, -1)
    ),
    prompt.vectors_BUD,
    level.expander.init_cache(batch, max(capacity, size)),
    codebooks,
  )
  before_B = prompt.count_B - prompt.open.num_ids_B
  last_B = prompt.ids_BS[jnp.arange(batch), jnp.maximum(before_B - 1, 0)]
  bos = level.expander.num_ids + Special.BOS
  entropy = None
  if level.config.expander.ends == 'entropy':
    state = prompt.state
    entropy = EntropyEnds(
      cache=state.entropy_cache,
      segmenter=state.segmenter,
      logits_BV=state.predicted.logits,
    )
  return RowsState(jnp.where(before_B > 0, last_B, bos), cache, entropy)


def decode_rows(
  level: Abstractinator,
  state: RowsState,
  codes: SegmentCodes,
  count_B: Array,
  limit_B: Array,
  choice: Choice,
  codebooks: Codebooks | None = None,
  *,
  first_slot_B: Array | None = None,
) -> tuple[Expanded, RowsState, Array]:
  """Decodes segments of rows, one id per row and step.

  A row is done after its last segment or `limit_B` new ids. If `first_slot_B`
  is None, a row holds several documents: EOS ends one, and the id after it is
  predicted from BOS and sees no earlier id. At a level without EOS the last
  segment of a document ends it, the one before a slot that attends to no slot
  before it. Otherwise a row is one document and ends at EOS.

  Args:
    level: A bound level.
    state: State after the previous call or after a prompt.
    codes: Codes that the segments attend to.
    count_B: Segments of each row, the first ones of `codes`, [B] int32.
    limit_B: New ids after which a row is done, [B] int32.
    choice: Chooses ids, and ends where a head says them.
    codebooks: Codebooks of the level below; None over bytes.
    first_slot_B: Number of the call's first segment in its document, [B] int32.

  Returns:
    The decoded ids, the state, and the states that the last ids were predicted
    from, [B, D].
  """
  batch, slots = codes.lowest_BP.shape
  row_B = jnp.arange(batch)
  has_documents = first_slot_B is None
  number_B = 0 if first_slot_B is None else first_slot_B

  def is_active(loop):
    return ~loop.is_done_B & (loop.slot_B + loop.opens_B < count_B)

  def one_step(level, carry):
    loop, out = carry
    is_active_B = is_active(loop)
    loop = _next_position(loop, is_active_B)
    seen = codes.seen_from(jnp.clip(loop.slot_B, 0, slots - 1)[:, None])
    if has_documents and not level.expander.has_eos:
      loop = _open_document(level, loop, is_active_B, seen)
    x_BD, cache = _expander_step(
      level, loop, is_active_B, seen, number_B + loop.slot_B, codebooks
    )
    at = NextIds(level.expander, codebooks, x_BD, loop.slot_B, loop.offset_B)
    ids_B = choice.ids(at)
    where = (row_B, jnp.where(is_active_B, at.slot_N, slots), at.offset_N)
    out = out.record(where, ids_B, choice.nats(at, ids_B))
    loop = dataclasses.replace(
      loop, x_BD=jnp.where(is_active_B[:, None], x_BD, loop.x_BD), cache=cache
    )
    loop = _take(
      level, loop, is_active_B, at, ids_B, limit_B, choice, has_documents
    )
    return loop, out

  loop = _begin(level, state, limit_B)
  longest = level.config.segmentation.max_length
  loop, out = while_loop(
    lambda carry: jnp.any(is_active(carry[0])),
    one_step,
    level,
    (loop, empty_expanded(batch, slots, longest, has_nats=choice.has_nats)),
  )
  return out, RowsState(loop.fed_B, loop.cache, loop.entropy), loop.x_BD


def decode_greedily(
  level: Abstractinator,
  vectors_BUD: Array,
  is_valid_BP: Array,
  lowest_BP: Array,
  sequence_length: int,
  codebooks: Codebooks | None = None,
) -> tuple[Array, Array]:
  """Decodes whole rows of codes to their most likely ids.

  Args:
    level: A bound level.
    vectors_BUD: Vectors of the codes, [B, U, D].
    is_valid_BP: Slots with a segment, the first ones of a row, [B, P] bool.
    lowest_BP: First slot that each segment attends to, [B, P] int32.
    sequence_length: S, the most ids of a row; the last segment is cut there.
    codebooks: Codebooks of the level below; None over bytes.

  Returns:
    Ids [B, P, L] int32, 0 past a segment's end, and lengths [B, P] int32, 0 for
    segments without an id.
  """
  expander, batch = level.expander, len(is_valid_BP)
  entropy = None
  if level.config.expander.ends == 'entropy':
    entropy = entropy_ends.start(level, batch, sequence_length)
  bos_B = jnp.full((batch,), level.num_ids + Special.BOS, jnp.int32)
  out, _, _ = decode_rows(
    level,
    RowsState(bos_B, expander.init_cache(batch, sequence_length), entropy),
    SegmentCodes(expander.remember(vectors_BUD), lowest_BP),
    jnp.sum(is_valid_BP, axis=1, dtype=jnp.int32),
    jnp.full((batch,), sequence_length, jnp.int32),
    Greedy(),
    codebooks,
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


def _open_document(
  level: Abstractinator, loop: _RowsLoop, is_active_B: Array, seen: StepCodes
) -> _RowsLoop:
  """Begins a document at a slot that attends to no slot before it.

  Only now is it known; a head, which says the ends at such a level, needs no
  document.
  """
  is_first_B = (seen.lowest_RT == seen.index_RT)[:, 0]
  is_first_B &= is_active_B & loop.opens_B
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
  seen: StepCodes,
  number_B: Array,
  codebooks: Codebooks | None,
) -> tuple[Array, Cache]:
  """Computes the states [B, D] that the next ids are predicted from.

  `number_B` tells segments of a row apart where they see no ids of each other.
  """
  fed_B, group_B = loop.fed_B, loop.document_B
  if level.expander.is_alone:
    bos = level.expander.num_ids + Special.BOS
    fed_B = jnp.where(loop.opens_B, bos, fed_B)
    group_B = number_B
  return level.expander.step(
    fed_B, loop.offset_B, group_B, loop.cache, is_active_B, seen, codebooks
  )


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
  is_new_B = choice.is_new(at)
  is_eos_B = ids_B == expander.num_ids + Special.EOS
  num_new_B = loop.num_new_B + (is_active_B & is_new_B)
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
    # The state of a prompt has read its known ids already.
    is_read_B = is_active_B & is_new_B & ~is_done_B
    entropy, opens_B = entropy_ends.after(
      level, entropy, ids_B, fed_B, document_B, is_read_B
    )
    opens_B &= is_new_B
  return dataclasses.replace(
    loop,
    fed_B=jnp.where(is_active_B, fed_B, loop.fed_B),
    document_B=jnp.where(is_active_B, document_B, loop.document_B),
    opens_B=jnp.where(is_active_B, opens_B | is_eos_B, loop.opens_B),
    num_new_B=num_new_B,
    is_done_B=is_done_B,
    entropy=entropy,
  )
