"""Comparison of implementations of an op with its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import xla_flags
from tests.helpers.jitted import jit

# Values and gradients, relative to the largest number of the oracle.
TOLERANCES = {'float32': (2e-6, 1e-5), 'bfloat16': (5e-3, 1e-2)}


def assert_close(got, want, tolerance, what):
  got, want = (np.asarray(x, np.float32) for x in (got, want))
  assert got.shape == want.shape, what
  assert np.isfinite(want).all(), what
  scale = max(np.max(np.abs(want), initial=0.0), 1e-3)
  np.testing.assert_allclose(
    got, want, rtol=0, atol=tolerance * scale, err_msg=what
  )


@pytest.fixture(scope='session')
def hold_against():
  """Returns a check of a function against its oracle."""

  def check(function, oracle, arrays, dtype='float32'):
    """Compares values and gradients on `arrays`.

    Args:
      function: Function from arrays to one array.
      oracle: Function that the result is compared with; it takes float32.
      arrays: Float arrays, rounded to `dtype` for both.
      dtype: Type that `function` takes.
    """
    given = [jnp.asarray(x, dtype) for x in arrays]
    exact = [x.astype(jnp.float32) for x in given]
    tolerance, grad_tolerance = TOLERANCES[dtype]

    def both(f, args):
      out, pullback = jax.vjp(f, *args)
      rng = np.random.default_rng(11)
      direction = jnp.asarray(rng.normal(size=out.shape), 'bfloat16')
      return out, pullback(direction.astype(out.dtype))

    # Compiled as for users: tolerances are near rounding.
    run = jax.jit(
      lambda *args: both(function, args), compiler_options=xla_flags.AS_USERS
    )
    got, got_grads = run(*given)
    want, want_grads = jit(lambda *args: both(oracle, args))(*exact)
    assert got.dtype == jnp.dtype(dtype)
    assert_close(got, want, tolerance, 'value')
    assert len(got_grads) == len(want_grads) > 0
    for i, (a, b) in enumerate(zip(got_grads, want_grads, strict=True)):
      assert a.dtype == jnp.dtype(dtype)
      assert_close(a, b, grad_tolerance, f'gradient of argument {i}')

  return check
