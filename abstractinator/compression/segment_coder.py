"""Coder of the ids of segments, given their codes.

Encoder and decoder run the same loop over lanes of segments: each step codes
the next id of every active lane, and whether its segment ends there. B are all
lanes of a step, N the active ones.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from abstractinator.compression.coder import RangeCoder
from abstractinator.compression.hierarchy_level import HierarchyLevel
from abstractinator.ops.cache import Cache
from abstractinator.ops.digits import place_values
from abstractinator.types import Array


@dataclasses.dataclass
class SegmentIds:
  """Ids of P segments of a level.

  Attributes:
    ids_PL: Ids of each segment, 0 past its end, [P, L] int32.
    length_P: Number of ids of each segment, 1..L, [P] int32; 0 if not known.
  """

  ids_PL: np.ndarray
  length_P: np.ndarray

  @classmethod
  def empty(cls, num_segments: int, max_length: int) -> 'SegmentIds':
    """Returns segments whose ids are to be decoded."""
    shape = (num_segments, max_length)
    return cls(np.zeros(shape, np.int32), np.zeros(num_segments, np.int32))

  @classmethod
  def from_rows(
    cls, ids_N: np.ndarray, index_BS: np.ndarray, max_length: int
  ) -> 'SegmentIds':
    """Joins the segments of rows.

    Args:
      ids_N: Ids of all rows in order, without padding, [N] int32.
      index_BS: Segment of each id, counted from 0 in each row, -1 on padding,
        [B, S] int32.
      max_length: Most ids of a segment, L.
    """
    rows = [np.bincount(index_S[index_S >= 0]) for index_S in index_BS]
    length_P = np.concatenate(rows)
    found = cls.empty(len(length_P), max_length)
    found.length_P[:] = length_P
    found.ids_PL[found.is_id] = ids_N
    return found

  @property
  def is_id(self) -> np.ndarray:
    """Entries of `ids_PL` that are ids, [P, L] bool."""
    return np.arange(self.ids_PL.shape[1]) < self.length_P[:, None]

  def joined(self) -> np.ndarray:
    """Returns the ids of all segments in order, [N] int32."""
    return self.ids_PL[self.is_id]


def code_segments(
  level: HierarchyLevel,
  codes_PQ: np.ndarray,
  lane_segments: int,
  segments: SegmentIds,
  coder: RangeCoder,
) -> None:
  """Codes the ids and ends of segments.

  Args:
    level: Level of the segments.
    codes_PQ: Codes of the segments, [P, Q] int32.
    lane_segments: Segments of a lane, which are coded one after the other.
    segments: The P segments; a decoder fills them in.
    coder: Encoder or decoder.

  Raises:
    ValueError: If the data of a decoder was not written like that.
  """
  count = len(codes_PQ)
  group = lane_segments * level.shapes.widths[-1]
  for start in range(0, count, group):
    stop = min(start + group, count)
    first_N = np.arange(start, stop, lane_segments)
    lanes = _LanePositions(
      level, first_N, np.minimum(first_N + lane_segments, stop)
    )
    cache = level.start(len(lanes.at_B), lane_segments)
    while lanes.active_B.any():
      width = level.shapes.width_of(int(lanes.active_B.sum()))
      cache = lanes.narrow(width, cache)
      cache = _one_step(level, codes_PQ, lanes, segments, coder, cache)


class _LanePositions:
  """Position of each lane in its segments; all arrays are [B].

  Attributes:
    at_B: Segment of the next id.
    stop_B: The segment after the last one of the lane.
    offset_B: Position of the next id in its segment.
    fed_B: The id before it, or BOS.
    active_B: Whether the lane has a next id.
  """

  def __init__(
    self, level: HierarchyLevel, first_N: np.ndarray, stop_N: np.ndarray
  ) -> None:
    size = level.shapes.width_of(len(first_N))
    missing = size - len(first_N)
    self.at_B = np.pad(first_N, (0, missing))
    self.stop_B = np.pad(stop_N, (0, missing))
    self.active_B = np.arange(size) < len(first_N)
    self.offset_B = np.zeros(size, np.int32)
    self.fed_B = np.full(size, level.bos, np.int32)

  def narrow(self, width: int, cache: Cache) -> Cache:
    """Keeps some lanes, the active ones among them; returns their cache."""
    if width == len(self.active_B):
      return cache
    kept_B = np.argsort(~self.active_B, kind='stable')[:width]
    for name, value in vars(self).items():
      setattr(self, name, value[kept_B])
    return jax.tree.map(lambda x_BX: x_BX[kept_B], cache)


def _one_step(
  level: HierarchyLevel,
  codes_PQ: np.ndarray,
  lanes: _LanePositions,
  segments: SegmentIds,
  coder: RangeCoder,
  cache: Cache,
) -> Cache:
  """Codes the next id of each active lane; returns the new cache."""
  lookback = level.config.expander.lookback
  back_U = np.arange(-lookback, 1)
  # Lanes that are done stand behind their last segments.
  around_BU = np.clip(lanes.at_B[:, None] + back_U, 0, len(codes_PQ) - 1)
  first_table, x_BD, cache = level.step(
    lanes.fed_B,
    lanes.offset_B,
    lanes.active_B,
    codes_PQ[around_BU].reshape(len(around_BU), -1),
    np.maximum(lookback - lanes.at_B, 0).astype(np.int32),
    cache,
  )
  (active_N,) = np.nonzero(lanes.active_B)
  at_N, offset_N = lanes.at_B[active_N], lanes.offset_B[active_N]

  def table_of(stage: int, ids_B: np.ndarray) -> Array:
    return level.digit(stage, x_BD, ids_B) if stage else first_table

  ids_B = code_digits(
    level.sizes,
    lanes.active_B,
    segments.ids_PL[at_N, offset_N],
    table_of,
    coder,
  )
  is_end_N = offset_N == level.config.segmentation.max_length - 1
  is_asked_N = ~is_end_N
  if is_asked_N.any():
    table_B2 = np.asarray(level.ends(x_BD, ids_B))
    says_N = offset_N + 1 == segments.length_P[at_N]
    is_end_N[is_asked_N] = coder.code(
      table_B2[active_N[is_asked_N]], says_N[is_asked_N].astype(np.int32)
    )
  segments.ids_PL[at_N, offset_N] = ids_B[active_N]
  segments.length_P[at_N[is_end_N]] = offset_N[is_end_N] + 1
  lanes.fed_B = ids_B
  lanes.offset_B[active_N] = np.where(is_end_N, 0, offset_N + 1)
  lanes.at_B[active_N] += is_end_N
  lanes.active_B &= lanes.at_B < lanes.stop_B
  return cache


def code_digits(
  sizes: tuple[int, ...],
  active_B: np.ndarray,
  wanted_N: np.ndarray,
  table_of: Callable[[int, np.ndarray], Array],
  coder: RangeCoder,
) -> np.ndarray:
  """Codes one id of each active lane, digit by digit.

  Args:
    sizes: Values of each digit.
    active_B: Lanes that have an id, [B] bool.
    wanted_N: The ids of the active lanes, [N] int32; ignored by a decoder.
    table_of: Function from the number of a digit and ids whose earlier digits
      are known, [B] int32, to frequencies of the digit's values, [B, K] int32.
    coder: Encoder or decoder.

  Returns:
    The ids, [B] int32, 0 in other lanes.
  """
  ids_B = np.zeros(len(active_B), np.int32)
  for stage, (size, value) in enumerate(
    zip(sizes, place_values(sizes), strict=True)
  ):
    table_BK = np.asarray(table_of(stage, ids_B.copy()))
    ids_B[active_B] += value * coder.code(
      table_BK[active_B], wanted_N // value % size
    )
  return ids_B
