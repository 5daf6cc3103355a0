import numpy as np
import pytest

from abstractinator.evaluation.coded_rows import CodedLevel
from abstractinator.evaluation.level_statistics import (
  LevelStatistics,
  SegmentHistograms,
  word_starts,
)
from abstractinator.types import EOS_ID, bytes_to_ids
from tests.helpers import tiny_pyramid, tiny_run


def coded_level(index_BS, **values):
  """A level of bytes; what is not given does not matter."""
  index_BS = np.array(index_BS)
  others = {
    'entropy_bits_BS': np.zeros(index_BS.shape),
    'bits_BS': np.zeros(index_BS.shape),
    'is_short_BS': np.zeros(index_BS.shape, bool),
    'codes_BU': np.zeros(index_BS.shape, int),
    'is_code_BU': np.zeros(index_BS.shape, bool),
  }
  return CodedLevel(
    index_BS=index_BS, byte_slot_BS=index_BS, num_queries=1, **others | values
  )


def test_segment_statistics():
  (config,) = tiny_run.config().model.levels
  statistics = LevelStatistics(config)
  is_short_BS = np.zeros((2, 7), bool)
  is_short_BS[1, 2:] = True
  codes_BU = np.array([[3, 3, 5], [3, 3, 9]])
  level = coded_level(
    [[0, 0, 1, 2, 2, 2, -1], [0, 1, 1, 1, -1, -1, -1]],
    bits_BS=np.array([[1, 2, 4, 1, 1, 1, 9], [7, 2, 2, 3, 9, 9, 9]]),
    is_short_BS=is_short_BS,
    codes_BU=codes_BU,
    is_code_BU=codes_BU != 9,
  )
  none_BS = np.zeros((2, 7), bool)
  statistics.add(level, none_BS, none_BS)
  got = statistics.summary(num_bytes=20)
  # Segments of 3, 4, 3, 7 and 7 bits; codes say 6.
  assert got['code_capacity_bits'] == 6
  assert got['segment_bits_p50'] == 4
  assert got['segments_over_capacity_fraction'] == pytest.approx(2 / 5)
  assert got['ids_per_segment'] == 2
  assert got['bytes_per_segment'] == 4
  assert got['overflow_fraction'] == pytest.approx(2 / 10)
  assert got['live_code_fraction'] == 2 / 64
  assert got['word_start_f1'] == 0


def test_boundaries_and_words():
  ids = bytes_to_ids('Ab, été_1  x'.encode())
  is_first = np.arange(len(ids)) == 0
  starts = word_starts(ids, is_first)
  assert [int(i) for i in np.flatnonzero(starts)] == [0, 4, 13]
  assert ids[-1] == EOS_ID
  # Packed: the second document begins with a word although a letter is before.
  is_first[1] = True
  assert word_starts(ids, is_first)[1]
  (config,) = tiny_run.config().model.levels
  statistics = LevelStatistics(config)
  # Segments start at 0, 2, 4 and 5; that at 0 is not asked about.
  index_S = np.cumsum(np.isin(np.arange(len(ids)), [2, 4, 5]))
  statistics.add(coded_level([index_S]), starts[None], ~is_first[None])
  summary = statistics.summary(num_bytes=len(ids))
  assert summary['word_start_precision'] == 1 / 3
  assert summary['word_start_recall'] == 1 / 2
  assert summary['word_start_f1'] == pytest.approx(2 / 5)


def test_histograms():
  config = tiny_pyramid.make_config({}, {}, top_lm=None)
  levels = (
    coded_level(
      [[0, 0, 1, 1, 2, -1]],
      entropy_bits_BS=np.array([[1, 3, 0, 4, 2, 99]], np.float32),
    ),
    coded_level(
      [[0, 0, 1, -1]],
      entropy_bits_BS=np.array([[1, 2, 0.5, 99]], np.float32),
    ),
  )
  found = SegmentHistograms(config.levels)
  found.add(levels)
  found.add(levels)
  first, second = found.histograms().levels
  assert first.keys() == second.keys() == {'entropy_bits', 'segment_length'}
  counts, edges = first['entropy_bits']
  assert (edges[0], edges[-1], counts.sum()) == (0, 4, 10)
  assert counts[[0, -1]].tolist() == [2, 2]
  assert first['segment_length'].edges is None
  assert first['segment_length'].counts.tolist() == [0, 2, 4, 0, 0, 0]
  assert second['segment_length'].counts[:3].tolist() == [0, 2, 2]
