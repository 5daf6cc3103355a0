"""Beginnings of documents, compressed at every level."""

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.modules import compressor_prefill
from abstractinator.modules.compressor_stream import StreamState
from abstractinator.modules.segment_compressor import Below
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.types import Array, Segments


@flax.struct.dataclass
class LevelPrompt:
  """What a level makes of the beginnings of rows.

  The last segment of a row is open if more ids of it may come; the others are
  whole. Slots are as many as ids.

  Attributes:
    ids_BS: [B, S] int32, ids of the level.
    count_B: [B] int32, how many there are.
    segments: Their division, the open segment included.
    codes_BU: [B, U] int32, of the open segment as it stands.
    vectors_BUD: [B, U, D], of the codes.
    num_whole_B: [B] int32, whole segments.
    open_BL: [B, L] int32, ids of the open segment; arbitrary beyond.
    num_open_B: [B] int32, how many; 0 where none is open.
    has_open_B: [B] bool, a segment is open here or below.
    state: Of the compressor after the last id.
  """

  ids_BS: Array
  count_B: Array
  segments: Segments
  codes_BU: Array
  vectors_BUD: Array
  num_whole_B: Array
  open_BL: Array
  num_open_B: Array
  has_open_B: Array
  state: StreamState


def compress(
  levels: Sequence[nn.Module],
  ids_BS: Array,
  count_B: Array,
  *,
  capacities: Sequence[int],
  keeps_open: bool,
  closes: bool = False,
) -> list[LevelPrompt]:
  """Compresses rows to the top.

  Args:
    levels: Bound, bottom first.
    ids_BS: [B, S] int32 bytes.
    count_B: [B] int32, bytes of each row, 0 to S.
    capacities: Ids that a row of each level may come to.
    keeps_open: Whether the code of an open segment, as it stands, is an id of
      the level above; else only codes of whole segments are.
    closes: Whether what is open is taken for whole.

  Returns:
    Of each level, bottom first.
  """
  prompts, below = [], None
  has_open_B = jnp.zeros(count_B.shape, bool)
  for level, capacity in zip(levels, capacities, strict=True):
    prompt, quantized_BUD = _compress(
      level, ids_BS, count_B, capacity, below, has_open_B & keeps_open, closes
    )
    has_open_B |= prompt.num_open_B > 0
    prompts.append(prompt.replace(has_open_B=has_open_B))
    slots_B = prompt.segments.count_B if keeps_open else prompt.num_whole_B
    ids_BS, count_B = (
      prompt.codes_BU,
      slots_B * level.config.pooling.num_queries,
    )
    below = Below(quantized_BUD, codebooks_of(level))
  return prompts


def codebooks_of(level: nn.Module) -> Codebooks | None:
  """What ids of the level above are embedded and predicted with."""
  return level.compressor.quantizer.codebooks()


def codebooks_below(pyramid: nn.Module, number: int) -> Codebooks | None:
  """Those that ids of a level are made with; None of the first level."""
  return codebooks_of(pyramid.levels[number - 1]) if number else None


def recent(x_BN: Array, end_B: Array, size: int) -> Array:
  """The last of x, [B, size]: those before `end_B`; arbitrary where fewer."""
  at_BN = end_B[:, None] - size + jnp.arange(size)
  return jnp.take_along_axis(x_BN, jnp.maximum(at_BN, 0), axis=1)


def _compress(level, ids_BS, count_B, capacity, below, is_open_B, closes):
  batch, size = ids_BS.shape
  position_S = jnp.arange(size)
  document_BS = jnp.where(position_S < count_B[:, None], 0, -1)
  prefix, _, state = compressor_prefill.prefill(
    level.compressor,
    ids_BS,
    document_BS.astype(jnp.int32),
    jnp.zeros((batch,), bool),
    capacity=max(capacity, size),
    below=below,
  )
  segments = prefix.segments
  is_open_B = (count_B > 0) & (~state.opens_B | is_open_B)
  if closes:
    is_open_B = jnp.zeros_like(is_open_B)
  num_whole_B = segments.count_B - is_open_B
  is_of_open_BS = (segments.index_BS == num_whole_B[:, None]) & (
    position_S < count_B[:, None]
  )
  num_open_B = jnp.sum(is_of_open_BS, axis=1, dtype=jnp.int32)
  longest = level.config.segmentation.max_length
  at_BL = (count_B - num_open_B)[:, None] + jnp.arange(longest)
  codes_BU = prefix.quantized.codes_BP
  prompt = LevelPrompt(
    ids_BS=ids_BS,
    count_B=count_B,
    segments=segments,
    codes_BU=codes_BU,
    vectors_BUD=level.compressor.quantizer.lookup(codes_BU),
    num_whole_B=num_whole_B,
    open_BL=jnp.take_along_axis(ids_BS, jnp.minimum(at_BL, size - 1), axis=1),
    num_open_B=num_open_B,
    has_open_B=is_open_B,
    state=state,
  )
  return prompt, prefix.quantized.vectors_BPD
