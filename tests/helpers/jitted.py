"""Functions compiled for tests; see `tests/helpers/xla_flags.py` for flags."""

import functools

import jax


def jit(function, **kwargs):
  """Jits a function, partially applied, that is traced for this use alone."""
  return jax.jit(functools.partial(function, **kwargs))


def jit_to_numpy(function, **kwargs):
  """Compiles a function whose results are numpy arrays, cheap to slice."""
  run = jit(function, **kwargs)
  return lambda *args: jax.device_get(run(*args))
