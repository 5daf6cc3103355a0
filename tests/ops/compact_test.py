import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops.compact import compact, first_equal
from tests.helpers.jitted import jit_to_numpy

ROWS, SLOTS = 3, 40


def test_ids_that_are_kept_move_to_the_front():
  rng = np.random.default_rng(0)
  ids = rng.integers(1, 99, (5, 7))
  kept = rng.random((5, 7)) < 0.5
  kept[0], kept[1] = False, True
  packed, count = compact(jnp.asarray(ids, jnp.int32), jnp.asarray(kept))
  for row in range(5):
    want = ids[row, kept[row]].tolist()
    assert count[row] == len(want)
    assert packed[row].tolist() == want + [0] * (7 - len(want))


@pytest.mark.parametrize('width', [1, 2, 4])
def test_the_first_slot_with_the_same_keys_is_found(width):
  rng = np.random.default_rng(width)
  # Few values, so that keys are repeated any number of times.
  keys = rng.integers(-1, 3, (ROWS, SLOTS, width)).astype(np.int32)
  want = [
    [
      next(i for i in range(SLOTS) if tuple(row[i]) == tuple(keys_of_slot))
      for keys_of_slot in row
    ]
    for row in keys
  ]
  found = jit_to_numpy(first_equal)(keys)
  np.testing.assert_array_equal(found, want)
  assert 0 < (found < np.arange(SLOTS)).sum() < found.size
