"""Codes of a level into its ids, id by id, with caches.

For levels whose segments see each other, or whose ends the entropy model says.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.modules.generation.prompt import LevelPrompt
from abstractinator.modules.generation.segments import (
  Expanded,
  Memory,
  draw_end,
  draw_id,
)
from abstractinator.modules.segment_ends import (
  Decoded,
  EntropyEnds,
  EntropyState,
)
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.ops.draw import Draws
from abstractinator.types import Array, PyTree, Segments, Special


@flax.struct.dataclass
class RowState:
  """Where rows stand, between segments.

  Attributes:
    last_id_B: [B] int32, the last id; BOS before the first.
    cache: Of the expander, of whole segments.
    entropy: Of what says the ends, of all ids; None where a head does.
  """

  last_id_B: Array
  cache: Cache
  entropy: EntropyState | None


def start(
  level: nn.Module,
  prompt: LevelPrompt,
  codebooks: Codebooks | None,
  capacity: int,
) -> RowState:
  """After the whole segments of a prompt; see `expansion.start`."""
  batch, size = prompt.ids_BS.shape
  document_BS, segments = whole(prompt)
  _, cache = level.expander.prefill(
    prompt.ids_BS,
    document_BS,
    segments,
    prompt.vectors_BUD,
    level.expander.init_cache(batch, max(capacity, size)),
    codebooks,
  )
  before_B = prompt.count_B - prompt.num_open_B
  last_B = prompt.ids_BS[jnp.arange(batch), jnp.maximum(before_B - 1, 0)]
  bos = level.expander.num_ids + Special.BOS
  entropy = None
  if level.config.expander.ends == 'entropy':
    state = prompt.state
    entropy = EntropyState(
      cache=state.entropy_cache,
      segmenter=state.segmenter,
      logits_BV=state.predicted.logits,
      surprisal_bits_B=jnp.zeros((batch,), jnp.float32),
    )
  return RowState(jnp.where(before_B > 0, last_B, bos), cache, entropy)


def whole(prompt: LevelPrompt) -> tuple[Array, Segments]:
  """Documents and segments of a prompt without its open segment."""
  is_whole_BS = prompt.segments.index_BS < prompt.num_whole_B[:, None]
  is_whole_BS &= prompt.segments.index_BS >= 0
  segments = dataclasses.replace(
    prompt.segments,
    index_BS=jnp.where(is_whole_BS, prompt.segments.index_BS, -1),
    is_start_BS=prompt.segments.is_start_BS & is_whole_BS,
    is_end_BS=prompt.segments.is_end_BS & is_whole_BS,
    offset_BS=jnp.where(is_whole_BS, prompt.segments.offset_BS, 0),
    count_B=prompt.num_whole_B,
  )
  return jnp.where(is_whole_BS, 0, -1).astype(jnp.int32), segments


def expand(
  level: nn.Module,
  state: PyTree,
  memory: Memory,
  count_B: Array,
  draws: Draws,
  limit_B: Array,
  codebooks: Codebooks | None,
  slot_B: Array,
) -> tuple[Expanded, RowState]:
  """The next segments; see `expansion.expand`, whose state this takes."""
  forced = state.forced
  longest = level.config.segmentation.max_length
  batch, slots = memory.own_BP.shape
  row_B = jnp.arange(batch)
  bos, eos = (level.expander.num_ids + x for x in (Special.BOS, Special.EOS))
  document_B = jnp.zeros((batch,), jnp.int32)

  def is_active(carry):
    _, at_B, _, opens_B, is_done_B, _ = carry
    return ~is_done_B & (at_B + opens_B < count_B)

  def one_step(level, carry):
    rows, at_B, offset_B, opens_B, is_done_B, out = carry
    is_active_B = is_active(carry)
    at_B = jnp.where(is_active_B, at_B + opens_B, at_B)
    offset_B = jnp.where(
      is_active_B, jnp.where(opens_B, 0, offset_B + 1), offset_B
    )
    own_B = jnp.clip(at_B, 0, slots - 1)
    is_alone = level.expander.is_alone
    x_BD, cache = level.expander.step(
      jnp.where(opens_B, bos, rows.last_id_B) if is_alone else rows.last_id_B,
      offset_B,
      slot_B + at_B if is_alone else document_B,
      rows.cache,
      is_active_B,
      (
        memory.remembered,
        memory.own_BP[row_B, own_B][:, None],
        memory.lowest_BP[row_B, own_B][:, None],
      ),
      codebooks,
    )
    of_id = draws.fold((slot_B + at_B) * longest + offset_B)
    is_first_B = at_B == 0
    ids_B, nats_B = draw_id(
      level, x_BD, of_id, forced, offset_B, is_first_B, codebooks
    )
    if rows.entropy is None:
      entropy = None
      opens_B, end_nats_B = draw_end(
        level, x_BD, ids_B, of_id, forced, offset_B, is_first_B, codebooks
      )
    else:
      # After known ids it has said so already.
      is_new_B = ~(is_first_B & (offset_B < forced.num_known_B))
      entropy, opens_B = EntropyEnds.opens(
        level,
        EntropyEnds.after(
          level, rows.entropy, Decoded(x_BD, ids_B, offset_B), codebooks
        ),
        ids_B,
        document_B,
        is_active_B & is_new_B,
      )
      opens_B, end_nats_B = opens_B & is_new_B, jnp.zeros_like(nats_B)
    ids_BPL, length_BP, nats_BPL, end_nats_BPL, num_new_B = out
    where = (row_B, jnp.where(is_active_B, at_B, slots), offset_B)
    is_known_B = is_first_B & (offset_B < forced.num_known_B)
    num_new_B += is_active_B & ~is_known_B
    out = (
      ids_BPL.at[where].set(ids_B, mode='drop'),
      length_BP.at[where[:2]].add(1, mode='drop'),
      nats_BPL.at[where].set(nats_B, mode='drop'),
      end_nats_BPL.at[where].set(end_nats_B, mode='drop'),
      num_new_B,
    )
    is_done_B |= is_active_B & ((ids_B == eos) | (num_new_B >= limit_B))
    last_id_B = jnp.where(is_active_B, ids_B, rows.last_id_B)
    opens_B = jnp.where(is_active_B, opens_B, carry[3])
    rows = RowState(last_id_B, cache, entropy)
    return rows, at_B, offset_B, opens_B, is_done_B, out

  zeros_BPL = jnp.zeros((batch, slots, longest), jnp.float32)
  out = (
    zeros_BPL.astype(jnp.int32),
    jnp.zeros((batch, slots), jnp.int32),
    zeros_BPL,
    zeros_BPL,
    jnp.zeros((batch,), jnp.int32),
  )
  none_B = jnp.zeros((batch,), bool)
  rows, *_, out = nn.while_loop(
    lambda _, carry: jnp.any(is_active(carry)),
    one_step,
    level,
    (state.rows, document_B - 1, document_B, ~none_B, none_B, out),
  )
  ids_BPL, length_BP, nats_BPL, end_nats_BPL, _ = out
  num_known_B = jnp.where(count_B > 0, forced.num_known_B, 0)
  return Expanded(ids_BPL, length_BP, num_known_B, nats_BPL, end_nats_BPL), rows
