"""What is said of the two ways; how fast they are is not for a test."""

import numpy as np
import pytest

from abstractinator.benchmarks import decode
from abstractinator.decoding import lanes
from tests.helpers import tiny_run

LANES = 8


@pytest.mark.parametrize('lookback', [0, 1])
def test_a_row_of_the_text_of_a_run(tmp_path, monkeypatch, lookback):
  monkeypatch.setitem(lanes._MOST_LANES, 'cpu', LANES)
  config = tiny_run.config(lookback=lookback)
  tiny_run.save(tmp_path, config)
  case = decode.of_run(str(tmp_path), b'to be or not to be ' * 4)
  side_by_side, one_by_one = decode.measure(case, repeats=1)
  # The whole text is one row, whatever the length of those of the run.
  codes = np.asarray(case.codes_BU)[0].tolist()
  assert one_by_one['segments'] == len(codes) > 32 // 2
  before = [None] * lookback + codes
  assert side_by_side['segments'] == len(set(zip(before, codes, strict=False)))
  assert side_by_side['segments'] < len(codes)
  assert side_by_side['bytes'] == one_by_one['bytes'] == one_by_one['steps']
  assert len(codes) <= one_by_one['bytes'] == one_by_one['ids']
  longest = config.model.levels[0].segmentation.max_length
  fewest = side_by_side['ids'] / LANES
  assert fewest <= side_by_side['steps'] < fewest + longest
