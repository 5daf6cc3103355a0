"""Ids hidden from a decoder, so that codes must carry the text."""

import jax

from abstractinator.types import Array


def hidden_ids(key: Array, row_B: Array, size: int, rate: float) -> Array:
  """Which ids byte dropout hides from the ids after them.

  Args:
    key: Of jax.random, one a step of training.
    row_B: [B] int32, see `Batch`: a row has the same ids hidden wherever it is
      computed.
    size: S.
    rate: Part of the ids.

  Returns:
    [B, S] bool.
  """

  def of_row(row):
    return jax.random.bernoulli(jax.random.fold_in(key, row), rate, (size,))

  return jax.vmap(of_row)(row_B)
