"""More lanes than a step takes."""

import json

import numpy as np

from abstractinator.compression import code_top_lm, segment_coder
from abstractinator.compression.hierarchy_codec import read_block, write_block
from abstractinator.config import RunConfig
from tests.helpers.tiny_hierarchy import ROW, make, pyramid_config

WIDTHS = (2, 8)


def test_more_lanes_than_the_widest_step_come_back(monkeypatch):
  """Of segments of both levels, and of top codes: one group after the other."""
  monkeypatch.setattr(segment_coder, 'WIDTHS', WIDTHS)
  monkeypatch.setattr(code_top_lm, 'WIDTHS', WIDTHS)
  monkeypatch.setattr(code_top_lm, '_LANE_WINDOWS', 1)
  values = json.loads(json.dumps(pyramid_config().to_dict()))
  values['model']['top_lm']['stack']['window'] = 4
  for level in values['model']['levels']:
    # Segments see the ones before them, be they of another group.
    level['expander']['lookback'] = 2
  model, _ = make(RunConfig.from_dict(values))
  data = bytes(np.random.default_rng(0).integers(97, 123, ROW).astype(np.uint8))
  segments, codes = model.encode(data)
  for level, of_level in zip(model.levels, segments, strict=True):
    count = len(of_level.length_P)
    assert level.lane_segments(count, len(of_level.joined())) == 1
    assert count > 2 * WIDTHS[-1]
  assert len(codes) / 4 > 2 * WIDTHS[-1]
  payload = write_block(model, model.new_codes(), data)
  assert read_block(model, model.new_codes(), payload, len(data)) == data
