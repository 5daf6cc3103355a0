"""Compression of prompts at every level, the open last segment kept apart."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from abstractinator.decoding.segments import KnownIds
from abstractinator.model.compressor import Below
from abstractinator.model.entropy_model import Prior
from abstractinator.model.level import Abstractinator
from abstractinator.model.pyramid import Pyramid
from abstractinator.model.vocabulary import Codebooks
from abstractinator.types import Array, Segments


@flax.struct.dataclass
class LevelPrompt:
  """Prompts at one level: ids, segments and codes, one row per prompt.

  The last segment of a row is open if more of its ids may come; the others are
  whole. There are as many slots as ids.

  Attributes:
    ids_BS: Ids of the level, [B, S] int32.
    count_B: Ids of each row, [B] int32.
    segments: Division of the ids, the open segment included.
    codes_BU: Codes, that of the open segment as it stands, [B, U] int32.
    vectors_BUD: Vectors of the codes, [B, U, D].
    num_whole_B: Whole segments, [B] int32.
    open: Ids of the open segment, none where no segment is open. Its last id is
      not known but forced where it is the code of a segment open below.
    has_open_B: Whether a segment is open at this level or below, [B] bool.
    prior: Predictions of the ids by the entropy model, [B, S].
    segments_BUD: Segments as vectors before quantization, [B, U, D].
  """

  ids_BS: Array
  count_B: Array
  segments: Segments
  codes_BU: Array
  vectors_BUD: Array
  num_whole_B: Array
  open: KnownIds
  has_open_B: Array
  prior: Prior
  segments_BUD: Array

  def whole_documents(self) -> Array:
    """Returns 0 for ids of whole segments and -1 for others, [B, S] int32."""
    index_BS = self.segments.index_BS
    is_whole_BS = (index_BS >= 0) & (index_BS < self.num_whole_B[:, None])
    return jnp.where(is_whole_BS, 0, -1).astype(jnp.int32)


def compress(
  levels: Sequence[Abstractinator],
  ids_BS: Array,
  count_B: Array,
  *,
  capacities: Sequence[int],
  keeps_open: bool,
) -> list[LevelPrompt]:
  """Compresses prompts to the top level.

  Args:
    levels: Bound levels, bottom first.
    ids_BS: Bytes of the prompts, [B, S] int32.
    count_B: Bytes of each prompt, 0 to S, [B] int32.
    capacities: Ids that a row of each level may come to.
    keeps_open: Whether the code of an open segment, as it stands, is an id of
      the level above; otherwise only codes of whole segments are.

  Returns:
    The prompts at each level, bottom first.
  """
  prompts, below = [], None
  has_open_B = jnp.zeros(count_B.shape, bool)
  for level, capacity in zip(levels, capacities, strict=True):
    prompt, quantized_BUD = _compress_level(
      level, ids_BS, count_B, capacity, below, has_open_B & keeps_open
    )
    has_open_B |= prompt.has_open_B
    prompts.append(dataclasses.replace(prompt, has_open_B=has_open_B))
    slots_B = prompt.segments.count_B if keeps_open else prompt.num_whole_B
    ids_BS = prompt.codes_BU
    count_B = slots_B * level.config.pooling.num_queries
    below = Below(quantized_BUD, level.compressor.quantizer.codebooks())
  return prompts


def codebooks_below(pyramid: Pyramid, number: int) -> Codebooks | None:
  """Returns the codebooks whose codes are the ids of a level; None over bytes.

  Args:
    pyramid: A bound pyramid.
    number: Number of the level, counted from 0 at the bottom.
  """
  if number == 0:
    return None
  return pyramid.levels[number - 1].compressor.quantizer.codebooks()


def below_of(pyramid: Pyramid, number: int, ids: Array) -> Below | None:
  """Returns what a level reads of given ids; None over bytes.

  Args:
    pyramid: A bound pyramid.
    number: Number of the level, counted from 0 at the bottom.
    ids: Ids of the level, [B, S] int32.
  """
  if number == 0:
    return None
  quantizer = pyramid.levels[number - 1].compressor.quantizer
  return Below(quantizer.lookup(ids), quantizer.codebooks())


def recent(x_BN: Array, end_B: Array, size: int) -> Array:
  """Returns the entries of rows before a position.

  Args:
    x_BN: Rows, [B, N].
    end_B: Position after the last entry to return, [B] int32.
    size: Number of entries.

  Returns:
    [B, size], arbitrary at the front where a row has fewer.
  """
  at_BN = end_B[:, None] - size + jnp.arange(size)
  return jnp.take_along_axis(x_BN, jnp.maximum(at_BN, 0), axis=1)


def _compress_level(
  level: Abstractinator,
  ids_BS: Array,
  count_B: Array,
  capacity: int,
  below: Below | None,
  is_last_open_B: Array,
) -> tuple[LevelPrompt, Array]:
  """Returns the prompts at a level, and the vectors that the next one reads.

  `is_last_open_B` says whose last id is the code of a segment open below.
  """
  size = ids_BS.shape[1]
  position_S = jnp.arange(size)
  document_BS = jnp.where(position_S < count_B[:, None], 0, -1)
  prefix, state = level.compressor.prefill(
    ids_BS,
    document_BS.astype(jnp.int32),
    capacity=max(capacity, size),
    below=below,
  )
  segments = prefix.segments
  is_open_B = (count_B > 0) & (~state.opens_B | is_last_open_B)
  num_whole_B = segments.count_B - is_open_B
  is_in_open_BS = segments.index_BS == num_whole_B[:, None]
  is_in_open_BS &= position_S < count_B[:, None]
  num_open_B = jnp.sum(is_in_open_BS, axis=1, dtype=jnp.int32)
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
    open=KnownIds(
      jnp.take_along_axis(ids_BS, jnp.minimum(at_BL, size - 1), axis=1),
      jnp.maximum(num_open_B - is_last_open_B, 0),
      num_open_B,
    ),
    has_open_B=is_open_B,
    prior=prefix.prior,
    segments_BUD=prefix.pooled_BUD,
  )
  return prompt, prefix.quantized.vectors_BPD
