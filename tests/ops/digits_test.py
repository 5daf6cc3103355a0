import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import digits


@pytest.mark.parametrize('sizes', [(7,), (3, 3), (8, 5, 5, 5), (2, 3, 4)])
def test_every_code_survives_its_digits(sizes):
  codes = jnp.arange(np.prod(sizes), dtype=jnp.int32)
  found = digits.decompose(codes, sizes)
  assert found.shape == (len(codes), len(sizes))
  assert found.dtype == jnp.int32
  assert len(np.unique(found, axis=0)) == len(codes)
  assert (found >= 0).all()
  assert (found < np.array(sizes)).all()
  np.testing.assert_array_equal(digits.compose(found, sizes), codes)


def test_the_first_digit_counts_least():
  assert digits.place_values((8, 5, 3)) == (1, 8, 40)
  np.testing.assert_array_equal(
    digits.decompose(jnp.array([[3, 8, 41]]), (8, 5, 3)),
    [[[3, 0, 0], [0, 1, 0], [1, 0, 1]]],
  )


def test_the_largest_codes_fit():
  sizes = (46340, 46340)
  last = jnp.array([46339, 46339])
  assert int(digits.compose(last, sizes)) == 46340**2 - 1
  np.testing.assert_array_equal(
    digits.decompose(jnp.int32(46340**2 - 1), sizes), last
  )
