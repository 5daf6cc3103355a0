"""Functions compiled for tests; see `tests/helpers/xla_flags.py` for flags."""

import functools

import jax
from jax.interpreters.partial_eval import dce_jaxpr


def jit(function, **kwargs):
  """Jits a function, partially applied, that is traced for this use alone."""
  return jax.jit(functools.partial(function, **kwargs))


def jit_to_numpy(function, **kwargs):
  """Compiles a function whose results are numpy arrays, cheap to slice."""
  run = jit(function, **kwargs)
  return lambda *args: jax.device_get(run(*args))


def init(module, *args, **kwargs):
  """Returns the variables of a module without a program of its own.

  To compile an init as one program takes seconds. Here only the ops that
  variables depend on run, one by one: nearly all draw numbers, and each is
  compiled once for a shape, whatever the module.

  Args:
    module: Owner of the method `init`.
    *args: Trees of arrays for `init`.
    **kwargs: Options of `init`.
  """
  closed, shapes = jax.make_jaxpr(
    functools.partial(module.init, **kwargs), return_shape=True
  )(*args)
  jaxpr, is_used = dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))
  leaves = zip(jax.tree.leaves(args), is_used, strict=True)
  found = jax.core.eval_jaxpr(
    jaxpr, closed.consts, *(leaf for leaf, used in leaves if used)
  )
  return jax.tree.unflatten(jax.tree.structure(shapes), found)
