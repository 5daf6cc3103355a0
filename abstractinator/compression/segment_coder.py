"""Ids of segments given their codes, for who writes and for who reads.

Both run the same loop, over lanes of segments side by side: each step codes the
next id of every lane that has one, and whether its segment ends there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

# From frequencies and symbols [N] to symbols: who writes is given them and
# hands them on, who reads is given any and finds those that were written.
Code = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Lanes of a step: a program is compiled for each.
WIDTHS = (32, 128, 512, 2048)


@dataclasses.dataclass
class Segments:
  """Ids in segments.

  Attributes:
    ids_PL: [P, L] int32, 0 past the end of a segment.
    length_P: [P] int32, 1..L.
  """

  ids_PL: np.ndarray
  length_P: np.ndarray

  @classmethod
  def empty(cls, num_segments: int, longest: int) -> 'Segments':
    """Of no ids."""
    shape = (num_segments, longest)
    return cls(np.zeros(shape, np.int32), np.zeros(num_segments, np.int32))

  def joined(self) -> np.ndarray:
    """All ids in order, [N] int32."""
    is_id_PL = np.arange(self.ids_PL.shape[1]) < self.length_P[:, None]
    return self.ids_PL[is_id_PL]


class LevelTables(Protocol):
  """What predicts the ids of a level; see `HierarchyLevel`."""

  lookback: int
  length: int
  sizes: tuple[int, ...]
  bos: int
  start: Callable[..., Any]
  step: Callable[..., Any]
  digit: Callable[..., Any]
  ends: Callable[..., Any]
  take: Callable[..., Any]


def code_segments(
  level: LevelTables,
  codes_PQ: np.ndarray,
  lane_segments: int,
  segments: Segments,
  code: Code,
) -> None:
  """Codes the ids and ends of segments, which who reads fills in.

  Args:
    level: Of the segments.
    codes_PQ: [P, Q] int32, their codes.
    lane_segments: Of a lane, which decodes them one after the other.
    segments: P of them.
    code: What writes or reads.

  Raises:
    ValueError: If what is read was not written so.
  """
  count = len(codes_PQ)
  for start in range(0, count, lane_segments * WIDTHS[-1]):
    stop = min(start + lane_segments * WIDTHS[-1], count)
    first_N = np.arange(start, stop, lane_segments)
    lanes = _Lanes(first_N, np.minimum(first_N + lane_segments, stop), level)
    cache = level.start(len(lanes.at_N), lane_segments)
    while lanes.is_active_N.any():
      kept_N = lanes.narrow()
      if kept_N is not None:
        cache = level.take(cache, kept_N)
      cache = _one_step(level, codes_PQ, lanes, segments, code, cache)


class _Lanes:
  """Where each lane stands, all [N].

  Attributes:
    at_N: Its segment.
    stop_N: The one after its last.
    offset_N: Position of the next id in the segment.
    fed_N: The id before, or BOS.
    is_active_N: Whether there is a next id.
  """

  def __init__(self, first_N, stop_N, level: LevelTables):
    size = width_of(len(first_N))
    missing = size - len(first_N)
    self.at_N = np.pad(first_N, (0, missing))
    self.stop_N = np.pad(stop_N, (0, missing))
    self.is_active_N = np.arange(size) < len(first_N)
    self.offset_N = np.zeros(size, np.int32)
    self.fed_N = np.full(size, level.bos, np.int32)

  def narrow(self) -> np.ndarray | None:
    """Drops lanes that are done if few are left; numbers of those kept."""
    size = width_of(int(self.is_active_N.sum()))
    if size == len(self.is_active_N):
      return None
    kept_N = np.argsort(~self.is_active_N, kind='stable')[:size]
    for name, value in vars(self).items():
      setattr(self, name, value[kept_N])
    return kept_N


def width_of(count: int) -> int:
  """Lanes of a step that has so many to code."""
  return next(size for size in WIDTHS if size >= count)


def _one_step(level, codes_PQ, lanes, segments, code, cache):
  back_U = np.arange(-level.lookback, 1)
  # Lanes that are done stand behind their last segments.
  around_NU = np.clip(lanes.at_N[:, None] + back_U, 0, len(codes_PQ) - 1)
  table, x_ND, cache = level.step(
    lanes.fed_N,
    lanes.offset_N,
    lanes.is_active_N,
    codes_PQ[around_NU].reshape(len(around_NU), -1),
    np.maximum(level.lookback - lanes.at_N, 0).astype(np.int32),
    cache,
  )
  (active_A,) = np.nonzero(lanes.is_active_N)
  at_A, offset_A = lanes.at_N[active_A], lanes.offset_N[active_A]
  wanted_A = segments.ids_PL[at_A, offset_A]

  def digit(stage, ids_N):
    return level.digit(stage, x_ND, ids_N) if stage else table

  ids_N = code_digits(
    level.sizes, len(lanes.fed_N), active_A, wanted_A, digit, code
  )
  is_end_A = offset_A == level.length - 1
  (asked_A,) = np.nonzero(~is_end_A)
  if len(asked_A):
    end_table = _whole(level.ends(x_ND, ids_N))
    says_A = offset_A + 1 == segments.length_P[at_A]
    is_end_A[asked_A] = code(
      end_table[active_A[asked_A]], says_A[asked_A].astype(np.int32)
    )
  segments.ids_PL[at_A, offset_A] = ids_N[active_A]
  segments.length_P[at_A[is_end_A]] = offset_A[is_end_A] + 1
  lanes.fed_N = ids_N
  lanes.offset_N[active_A] = np.where(is_end_A, 0, offset_A + 1)
  lanes.at_N[active_A] += is_end_A
  lanes.is_active_N &= lanes.at_N < lanes.stop_N
  return cache


def code_digits(
  sizes: tuple[int, ...],
  num_lanes: int,
  active_A: np.ndarray,
  wanted_A: np.ndarray,
  table_of: Callable[[int, np.ndarray], Any],
  code: Code,
) -> np.ndarray:
  """Codes one id of each active lane, digit by digit.

  Args:
    sizes: Values of each digit.
    num_lanes: N.
    active_A: [A] int, numbers of lanes that have an id.
    wanted_A: [A] int32, the ids, of no concern to who reads.
    table_of: From the number of a digit, and ids [N] of the digits before it,
      to frequencies [N, K].
    code: What writes or reads.

  Returns:
    [N] int32, 0 in other lanes.
  """
  ids_N, value = np.zeros(num_lanes, np.int32), 1
  for stage, size in enumerate(sizes):
    table_NK = _whole(table_of(stage, ids_N.copy()))
    ids_N[active_A] += value * code(
      table_NK[active_A], wanted_A // value % size
    )
    value *= size
  return ids_N


def _whole(table) -> np.ndarray:
  frequencies_NV = np.asarray(table)
  if frequencies_NV.min() < 1:
    raise ValueError(
      'the model predicts what is no number, allowed: a checkpoint whose'
      ' parameters are finite'
    )
  return frequencies_NV
