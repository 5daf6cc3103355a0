"""Comparison of implementations of an op with its oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import xla_flags

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


@functools.cache
def value_and_pullback(function, options=()):
  """Returns a compiled function of arguments, of others, and of a gradient."""

  def both(args, others, direction):
    out, pullback = jax.vjp(lambda *args: function(*args, *others), *args)
    return out, pullback(direction.astype(out.dtype))

  return jax.jit(both, compiler_options=dict(options))


@pytest.fixture(scope='session')
def hold_against():
  """Returns a check of a function against its oracle."""

  def check(function, oracle, arrays, dtype='float32', others=()):
    """Compares values and gradients on `arrays`.

    Each function is compiled once for arrays of one shape.

    Args:
      function: Function from arrays, and `others`, to one array.
      oracle: Function that the result is compared with; it takes float32.
      arrays: Float arrays, rounded to `dtype` for both.
      dtype: Type that `function` takes.
      others: Arguments after those that gradients are of.
    """
    given = [jnp.asarray(x, dtype) for x in arrays]
    exact = [x.astype(jnp.float32) for x in given]
    tolerance, grad_tolerance = TOLERANCES[dtype]

    shape = jax.eval_shape(oracle, *exact, *others).shape
    direction = np.random.default_rng(11).normal(size=shape)
    direction = jnp.asarray(direction, 'bfloat16')
    # Compiled as for users: tolerances are near rounding.
    run = value_and_pullback(function, tuple(xla_flags.AS_USERS.items()))
    got, got_grads = run(given, others, direction)
    want, want_grads = value_and_pullback(oracle)(exact, others, direction)
    assert got.dtype == jnp.dtype(dtype)
    assert_close(got, want, tolerance, 'value')
    assert len(got_grads) == len(want_grads) > 0
    for i, (a, b) in enumerate(zip(got_grads, want_grads, strict=True)):
      assert a.dtype == jnp.dtype(dtype)
      assert_close(a, b, grad_tolerance, f'gradient of argument {i}')

  return check
