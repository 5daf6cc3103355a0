"""Ids from codes alone, one after the other; see also `expander_lanes`."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.modules.segment_ends import ENDS, Decoded
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.types import Array, PyTree, Special


@flax.struct.dataclass
class RowState:
  """Where each row stands.

  Attributes:
    count: [] int32, ids decoded so far of the rows that go on.
    is_active_B: [B] bool, rows that go on.
    last_id_B: [B] int32, the last id; EOS before the first.
    document_B: [B] int32, its document; -1 before the first.
    slot_B: [B] int32, its segment; -1 before the first.
    offset_B: [B] int32, its position within its segment.
    cache: Of the expander.
    ends: State of what says where segments end.
    ids_BPL: [B, P, L] int32, ids of each segment so far.
    length_BP: [B, P] int32, how many.
  """

  count: Array
  is_active_B: Array
  last_id_B: Array
  document_B: Array
  slot_B: Array
  offset_B: Array
  cache: Cache
  ends: PyTree
  ids_BPL: Array
  length_BP: Array


def decode_rows(
  level: nn.Module,
  memory_BUD: Array,
  is_valid_BP: Array,
  lowest_BP: Array,
  sequence_length: int,
  codebooks: Codebooks | None = None,
) -> tuple[Array, Array]:
  """Greedy ids of rows, one after the other, for every context and ends.

  Codes are taken in turn: an id that opens a segment goes on to those of the
  next slot. A row is done after its last segment or `sequence_length` ids,
  which cut the last segment of a full row. EOS ends a document: the id after it
  is predicted from BOS and sees no earlier id. Where there is no EOS the last
  segment of a document ends it, the one before a slot that sees none before it.

  Args:
    level: With an `expander` and, with `ends='entropy'`, a `compressor`.
    memory_BUD: [B, U, D], vectors of the codes.
    is_valid_BP: [B, P] bool, slots with a segment, the first ones of a row.
    lowest_BP: [B, P] int32, first slot that each segment may see.
    sequence_length: S.
    codebooks: See `Vocabulary`.

  Returns:
    [B, P, L] int32 ids and [B, P] int32 lengths, 0 for segments without an id;
    ids past a segment's length are 0.
  """
  expander = level.expander
  ends = ENDS[level.config.expander.ends]
  batch, slots = is_valid_BP.shape
  num_segments_B = jnp.sum(is_valid_BP, axis=1, dtype=jnp.int32)
  row_B = jnp.arange(batch)
  remembered = expander.remember(memory_BUD)
  zero_B = jnp.zeros((batch,), jnp.int32)
  bos, eos = (level.num_ids + x for x in (Special.BOS, Special.EOS))

  def goes_on(level, state):
    is_within = state.count < sequence_length
    return is_within & jnp.any(state.is_active_B)

  def one_step(level, state):
    is_first_B = state.last_id_B == eos
    document_B = state.document_B + is_first_B
    before_B = jnp.where(is_first_B, bos, state.last_id_B)
    ends_state, opens_B = ends.opens(
      level, state.ends, before_B, document_B, state.is_active_B
    )
    opens_B |= is_first_B
    slot_B = state.slot_B + opens_B
    own_B = jnp.minimum(slot_B, slots - 1)
    if not expander.has_eos:
      # Known by now: the head, which ends segments here, needs no document.
      is_first_B = opens_B & (lowest_BP[row_B, own_B] == own_B)
      document_B = state.document_B + is_first_B
      before_B = jnp.where(is_first_B, bos, state.last_id_B)
    offset_B = jnp.where(opens_B, 0, state.offset_B + 1)
    is_active_B = state.is_active_B & (slot_B < num_segments_B)
    is_alone = level.expander.is_alone
    x_BD, cache = level.expander.step(
      jnp.where(opens_B, bos, before_B) if is_alone else before_B,
      offset_B,
      slot_B if is_alone else document_B,
      state.cache,
      is_active_B,
      (remembered, own_B[:, None], lowest_BP[row_B, own_B][:, None]),
      codebooks,
    )
    ids_B = level.expander.greedy(x_BD, codebooks)
    at_B = jnp.where(is_active_B, slot_B, slots)
    return RowState(
      count=state.count + 1,
      is_active_B=is_active_B,
      last_id_B=ids_B,
      document_B=document_B,
      slot_B=slot_B,
      offset_B=offset_B,
      cache=cache,
      ends=ends.after(
        level, ends_state, Decoded(x_BD, ids_B, offset_B), codebooks
      ),
      ids_BPL=state.ids_BPL.at[row_B, at_B, offset_B].set(ids_B, mode='drop'),
      length_BP=state.length_BP.at[row_B, at_B].add(1, mode='drop'),
    )

  max_length = level.config.segmentation.max_length
  start = RowState(
    count=jnp.zeros((), jnp.int32),
    is_active_B=num_segments_B > 0,
    last_id_B=zero_B + eos,
    document_B=zero_B - 1,
    slot_B=zero_B - 1,
    offset_B=zero_B,
    cache=expander.init_cache(batch, sequence_length),
    ends=ends.start(level, batch, sequence_length),
    ids_BPL=jnp.zeros((batch, slots, max_length), jnp.int32),
    length_BP=jnp.zeros((batch, slots), jnp.int32),
  )
  state = nn.while_loop(goes_on, one_step, level, start)
  return state.ids_BPL, state.length_BP
