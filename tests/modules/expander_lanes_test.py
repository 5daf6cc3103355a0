"""Segments side by side: steps stop with the longest, lanes with theirs."""

import jax
import numpy as np

from abstractinator.modules import expander_lanes
from abstractinator.modules.expander import DecoderOnlyExpanderRVQ
from tests.jitted import jit

ROWS, SLOTS = 2, 64


def test_lanes_of_segments_that_are_done_are_taken_away(
  tiny_level, monkeypatch
):
  level = tiny_level(expander__lookback=1)
  rng = np.random.default_rng(3)
  memory = 2 * rng.normal(size=(ROWS, SLOTS, level.config.d_model))
  # The second row has two documents.
  lowest = np.zeros((ROWS, SLOTS), np.int32)
  lowest[1, 20:] = 20
  lanes, greedy = [], DecoderOnlyExpanderRVQ.greedy

  def counted(self, x_ND, codebooks=None):
    jax.debug.callback(lambda: lanes.append(x_ND.shape[0]))
    return greedy(self, x_ND, codebooks)

  def decoder(few_lanes):
    """Of the slots with a segment: ids, lengths, the lanes of each step."""
    run = jit(
      level.model.apply,
      method=lambda m, *args: expander_lanes.decode_segments(m.expander, *args),
    )

    def call(is_valid_BP):
      monkeypatch.setattr(expander_lanes, '_FEW_LANES', few_lanes)
      lanes.clear()
      ids, length = run(
        level.variables, memory.astype(np.float32), is_valid_BP, lowest
      )
      jax.effects_barrier()
      return np.asarray(ids), np.asarray(length), list(lanes)

    return call

  monkeypatch.setattr(DecoderOnlyExpanderRVQ, 'greedy', counted)
  with_all, with_fewer = decoder(10**6), decoder(8)
  is_valid = np.ones((ROWS, SLOTS), bool)
  is_valid[0, ::5] = False
  ids, length, steps = with_all(is_valid)
  assert steps == [ROWS * SLOTS] * length.max()
  assert not length[~is_valid].any()
  assert len(set(ids[is_valid].ravel())) > 20

  found_ids, found_length, steps = with_fewer(is_valid)
  np.testing.assert_array_equal(found_length, length)
  np.testing.assert_array_equal(found_ids, ids)
  # As few as hold the row with the most segments left, of three widths.
  left = [int((length > n).sum(axis=1).max()) for n in range(length.max())]
  widths = [
    min(w for w in (SLOTS, SLOTS // 4, SLOTS // 16) if w >= n) for n in left
  ]
  assert steps == [ROWS * width for width in widths]
  assert len(set(widths)) == 3

  # Nothing waits for slots that are empty.
  is_short = is_valid & (length <= 2)
  assert 0 < is_short.sum() < is_valid.sum()
  found_ids, found_length, steps = with_fewer(is_short)
  assert len(steps) == found_length.max() <= 2 < length.max()
  np.testing.assert_array_equal(found_length, length * is_short)
  np.testing.assert_array_equal(found_ids, ids * is_short[..., None])


def test_how_many_lanes():
  widths = expander_lanes._widths
  few = expander_lanes._FEW_LANES
  assert widths(1, 100) == [100]
  assert widths(4, few - 1) == [few - 1]
  assert widths(4, few) == [few, few // 4]
  assert widths(1, 4095) == [4095, 1024, 256]
  assert widths(64, 4096) == [4096, 1024, 256]
