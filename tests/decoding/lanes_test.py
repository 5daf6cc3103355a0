"""Segments side by side: a lane goes on to the next, or goes if none waits."""

import jax
import numpy as np
import pytest

from abstractinator.decoding.choices import Greedy
from abstractinator.decoding.lanes import lane_counts
from tests.helpers.greedy_lanes import decode_segments
from tests.helpers.jitted import jit

ROWS, SLOTS = 2, 64


class Decoder:
  """Decodes random vectors of codes, two documents in the second row.

  Attributes:
    lanes: Number of lanes at each step of the last call.
  """

  def __init__(self, level, monkeypatch):
    self._level, self.lanes = level, []
    rng = np.random.default_rng(3)
    shape = ROWS, SLOTS, level.config.d_model
    self._memory = (2 * rng.normal(size=shape)).astype(np.float32)
    self._lowest = np.zeros((ROWS, SLOTS), np.int32)
    self._lowest[1, 20:] = 20
    greedy = Greedy.ids

    def counted(choice, at):
      jax.debug.callback(lambda: self.lanes.append(at.x_ND.shape[0]))
      return greedy(choice, at)

    monkeypatch.setattr(Greedy, 'ids', counted)

  def with_lanes(self, most, few):
    """A function of the slots with a segment: their ids and lengths."""
    run = jit(
      self._level.model.apply,
      method=lambda m, *args: decode_segments(
        m.expander, *args, most_lanes=most, few_lanes=few
      ),
    )

    def call(is_valid_BP):
      self.lanes.clear()
      variables = self._level.variables
      ids, length = run(variables, self._memory, is_valid_BP, self._lowest)
      jax.effects_barrier()
      return np.asarray(ids), np.asarray(length)

    return call


@pytest.fixture
def decoder(tiny_level, monkeypatch):
  return Decoder(tiny_level(expander__lookback=1), monkeypatch)


def test_with_a_lane_for_each_steps_are_those_of_the_longest(decoder):
  decode = decoder.with_lanes(10**6, 10**6)
  is_valid = np.ones((ROWS, SLOTS), bool)
  is_valid[0, ::5] = False
  ids, length = decode(is_valid)
  assert decoder.lanes == [ROWS * SLOTS] * length.max()
  assert not length[~is_valid].any()
  assert len(set(ids[is_valid].ravel())) > 20

  # Nothing waits for slots that are empty.
  is_short = is_valid & (length <= 2)
  assert 0 < is_short.sum() < is_valid.sum()
  found_ids, found_length = decode(is_short)
  assert len(decoder.lanes) == found_length.max() <= 2 < length.max()
  np.testing.assert_array_equal(found_length, length * is_short)
  np.testing.assert_array_equal(found_ids, ids * is_short[..., None])


@pytest.mark.parametrize(
  ('most', 'few', 'widths'),
  [
    (64, 8, [32, 16, 4]),
    (1, 99, [1]),
    *(
      pytest.param(*case, marks=pytest.mark.nightly)
      for case in [(32, 99, [16]), (96, 99, [48])]
    ),
  ],
)
def test_few_lanes_decode_the_same(decoder, most, few, widths):
  is_valid = np.ones((ROWS, SLOTS), bool)
  is_valid[0, ::5] = False
  ids, length = decoder.with_lanes(10**6, 10**6)(is_valid)
  found_ids, found_length = decoder.with_lanes(most, few)(is_valid)
  np.testing.assert_array_equal(found_length, length)
  np.testing.assert_array_equal(found_ids, ids)
  assert decoder.lanes == [ROWS * width for width in _steps(length, widths)]
  assert set(decoder.lanes) == {ROWS * width for width in widths}


def _steps(length_BP, widths):
  """Lanes of a row at each step, where no segment waits for a free one."""
  waiting = [list(row[row > 0]) for row in length_BP]
  busy, steps, stage = [[] for _ in waiting], [], 0
  while any(waiting) or any(busy):
    for row, queue in zip(busy, waiting, strict=True):
      count = widths[stage] - len(row)
      row += queue[:count]
      del queue[:count]
    left = max(len(a) + len(b) for a, b in zip(busy, waiting, strict=True))
    while stage + 1 < len(widths) and left <= widths[stage + 1]:
      stage += 1
    steps.append(widths[stage])
    busy = [[n - 1 for n in row if n > 1] for row in busy]
  return steps


def test_how_many_lanes():
  def widths(batch, slots):
    return lane_counts(batch, slots, most_lanes=1000, few_lanes=50)

  assert widths(1, 49) == [49]
  assert widths(1, 100) == [100, 50]
  assert widths(4, 100) == [100, 50, 13]
  assert widths(1, 4095) == [1000, 500, 125]
  assert widths(2, 4095) == [500, 250, 63]
  assert widths(2000, 4096) == [1]
