"""Rows that are read by a prefill and then by steps."""

import jax.numpy as jnp
import numpy as np


def stream(module, x, document, first, cache):
  """Prefills `first` vectors of each row and steps through the others.

  Args:
    module: With compiled `prefill` and `step`, and `variables`.
    x: Vectors, [B, S, D].
    document: Document of each vector, [B, S]; -1 on padding, which only ends a
      row.
    first: Number of vectors of each row in the prefill, [B].
    cache: An empty cache.

  Returns:
    Outputs of the module, [B, S, ...], arbitrary on padding, and the cache.
  """
  size = document.shape[1]
  position = np.asarray(first)
  length = np.asarray((document >= 0).sum(1))
  begin = np.arange(size) < position[:, None]
  out, cache = module.prefill(
    module.variables, x, jnp.where(begin, document, -1), cache
  )
  outs, rows = np.array(out), np.arange(len(x))
  while (position < length).any():
    active = position < length
    # Rows that are done are given any vector, which must not matter.
    at = np.minimum(position, size - 1)
    out, cache = module.step(
      module.variables, x[rows, at], document[rows, at], cache, active
    )
    outs[rows[active], at[active]] = out[active]
    position = position + active
  return outs, cache
