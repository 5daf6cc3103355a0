import numpy as np
import pytest

from abstractinator.ops.first_alike import codes_in_sight, first_alike
from tests.jitted import jit_to_numpy

ROWS, PLACES = 3, 40


@pytest.mark.parametrize('width', [1, 2, 4])
def test_the_first_place_with_the_same_keys(width):
  rng = np.random.default_rng(width)
  # Few enough values that keys come again, in every number of times.
  keys = rng.integers(-1, 3, (ROWS, PLACES, width)).astype(np.int32)
  want = [
    [
      next(i for i in range(PLACES) if tuple(row[i]) == tuple(keys_of_place))
      for keys_of_place in row
    ]
    for row in keys
  ]
  found = jit_to_numpy(first_alike)(keys)
  np.testing.assert_array_equal(found, want)
  assert 0 < (found < np.arange(PLACES)).sum() < found.size


@pytest.mark.parametrize('lookback', [0, 2])
@pytest.mark.parametrize('queries', [1, 3])
def test_what_a_segment_sees(lookback, queries):
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 9, (2, 6, queries)).astype(np.int32)
  lowest = np.array([[0] * 6, [0, 0, 2, 2, 4, 4]], np.int32)
  found = jit_to_numpy(
    lambda codes, lowest: codes_in_sight(codes, lowest, lookback)
  )(codes.reshape(2, -1), lowest)
  for row, slot in np.ndindex(2, 6):
    want = []
    for back in range(lookback + 1):
      there = slot - back >= lowest[row, slot]
      want += list(codes[row, slot - back]) if there else [-1] * queries
    np.testing.assert_array_equal(found[row, slot], want)
