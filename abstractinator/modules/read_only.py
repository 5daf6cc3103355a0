"""Using a module that is someone else's to change."""

import functools
from collections.abc import Callable

import flax.linen as nn
from jax import lax

from abstractinator.types import Array


def read_only(module: nn.Module) -> Callable[..., Array]:
  """A bound module as a function that neither writes nor learns.

  So that vectors that a top LM predicts find their codes without leaving a
  trace in the statistics of the codebook, even where `vq` is mutable.

  Args:
    module: A bound module, such as the quantizer of a level.

  Returns:
    The module's `apply` with its variables in place: of its arguments, and of
    `method=` for other than the call. Its variables get no gradient.
  """
  unbound, variables = module.unbind()
  return functools.partial(unbound.apply, lax.stop_gradient(variables))
