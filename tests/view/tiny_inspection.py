"""Inspections that are made up, so that tests compile nothing.

A segment ends after a space or a newline, and one above it after two codes.
Equal segments have equal codes, counted as they first appear.
"""

import json

import numpy as np

from abstractinator import types
from abstractinator.config import LevelConfig
from abstractinator.view.inspection import InspectedLevel, Inspection
from configs import default


def configs(
  num_levels: int, queries: int = 1, dictionary: int | None = None
) -> list[LevelConfig]:
  """Returns configs of levels of 65536 codes.

  Args:
    num_levels: Number of levels.
    queries: Codes of a segment of the first level.
    dictionary: Codes of the first level, of a dictionary; None for others.
  """
  found = []
  for number in range(num_levels):
    level = default.get_upper_level() if number else default.get_level()
    level.quantizer.codebook_size = 65536
    level.pooling.num_queries = 1 if number else queries
    if dictionary is not None and not number:
      level = default.get_config().model.levels[0]
      level.quantizer.codebook_size = dictionary
    found.append(LevelConfig.from_dict(json.loads(level.to_json_best_effort())))
  return found


def make(
  text: bytes,
  num_levels: int = 1,
  *,
  row_size: int = 64,
  queries: int = 1,
  wrong: dict[int, int] | None = None,
  beyond: dict[int, bytes] | None = None,
  forced: dict[int, int] | None = None,
  short: tuple[int, ...] = (),
) -> Inspection:
  """Returns an inspection.

  Args:
    text: The bytes.
    num_levels: Number of levels.
    row_size: Ids of a row.
    queries: Codes of a segment of the first level.
    wrong: Decoded ids that differ from the true ones, by position.
    beyond: Ids decoded past the end of top segments, by number.
    forced: Most likely ids that differ from the true ones, by position.
    short: Segments of the first level cut because a row ran short of slots.
  """
  ids_N = types.bytes_to_ids(text)
  rows = np.split(ids_N, range(row_size, len(ids_N), row_size))
  levels = []
  for number in range(num_levels):
    segments = [_words(row) if number == 0 else _pairs(row) for row in rows]
    names: dict[tuple, int] = {}
    codes = [
      np.array([names.setdefault(tuple(s), len(names)) for s in of_row])
      for of_row in segments
    ]
    q = 1 if number else queries
    rows = [np.repeat(x, q) + np.tile(np.arange(q), len(x)) for x in codes]
    lengths_P = np.array([len(s) for of_row in segments for s in of_row])
    at_N = np.arange(lengths_P.sum())
    levels.append(
      InspectedLevel(
        lengths_P=lengths_P,
        codes_PQ=np.concatenate(rows).reshape(-1, q),
        is_short_P=np.isin(
          np.arange(len(lengths_P)), short if number == 0 else ()
        ),
        entropy_bits_N=(at_N % 8).astype(np.float32),
        cost_bits_N=(0.25 * (at_N % 5)).astype(np.float32),
        expander_bits_N=(at_N % 3).astype(np.float32),
      )
    )

  def changed(of):
    new_N = ids_N.copy()
    for at, i in (of or {}).items():
      new_N[at] = i
    return new_N

  return Inspection(
    text=text,
    row_size=row_size,
    levels=tuple(levels),
    decoded_N=changed(wrong),
    beyond={
      top: np.frombuffer(x, np.uint8) for top, x in (beyond or {}).items()
    },
    forced_N=changed(forced),
    top_code_bits_N=None
    if num_levels == 1
    else np.full(levels[-1].codes_PQ.size, 1.5, np.float32),
    byte_accuracy=0.75,
  )


def _words(ids: np.ndarray) -> list[np.ndarray]:
  return [x for x in np.split(ids, _after(np.isin(ids, (32, 10)))) if len(x)]


def _pairs(ids: np.ndarray) -> list[np.ndarray]:
  return np.split(ids, range(2, len(ids), 2))


def _after(mask: np.ndarray) -> np.ndarray:
  return np.flatnonzero(mask) + 1
