"""Ids predicted without the one before, so that codes must carry the text."""

import jax

from abstractinator.types import Array


def hidden_ids(key: Array, row_B: Array, size: int, rate: float) -> Array:
  """Which ids are fed PAD in place of the id before them.

  So an id is hidden, from all that come after it, where the next one is marked.

  Args:
    key: Of jax.random, one a step of training.
    row_B: [B] int32, see `Batch`: a row has the same ids marked wherever it is
      computed.
    size: S.
    rate: Part of the ids.

  Returns:
    [B, S] bool.
  """

  def of_row(row):
    return jax.random.bernoulli(jax.random.fold_in(key, row), rate, (size,))

  return jax.vmap(of_row)(row_B)
