import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops.likeliest import likeliest


@pytest.mark.parametrize('shape', [(1,), (300,), (7, 5, 259)])
def test_it_is_what_argmax_says(shape):
  # Few values: the first of many that are largest.
  logits = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
  found = likeliest(jnp.asarray(logits))
  np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))
  assert found.dtype == jnp.int32


def test_what_cannot_be_is_left_out():
  logits = jnp.array([[-np.inf, -2.0, -np.inf], [-np.inf, -np.inf, -np.inf]])
  np.testing.assert_array_equal(likeliest(logits), [1, 0])


def test_of_what_is_no_number_it_is_the_first_id():
  assert likeliest(jnp.array([1.0, np.nan, -np.inf])) == 0
