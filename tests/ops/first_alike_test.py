import numpy as np
import pytest

from abstractinator.ops.first_alike import first_alike
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
