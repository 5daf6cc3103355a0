"""Gradients of a batch, a part of its rows at a time.

What is random goes by rows, statistics are sums that a step ends once, and
terms and metrics are sums as well: so parts add up to the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from abstractinator.ops.shards import BATCH_AXES, dividing_axes
from abstractinator.types import Array, Batch, PyTree


def accumulate(
  function: Callable[[PyTree, Batch], tuple[PyTree, PyTree, Any]],
  collections: PyTree,
  batch: Batch,
  like_sums: PyTree,
  microbatches: int,
) -> tuple[PyTree, PyTree, Any]:
  """Calls a function on one part of a batch after the other.

  Args:
    function: From collections and rows to a tree to be summed in place, the
      collections after these rows, and a second tree to be summed, of what is
      small.
    collections: Before the first part.
    batch: All rows.
    like_sums: A tree of the shapes, types and shardings of the first sums.
    microbatches: How many parts.

  Returns:
    What the function would return for the whole batch, but for rounding.
  """
  if microbatches == 1:
    return function(collections, batch)

  def part(carry, rows):
    sums, collections = carry
    more, collections, small = function(collections, rows)
    return (jax.tree.map(jnp.add, sums, more), collections), small

  start = jax.tree.map(jnp.zeros_like, like_sums), collections
  parts = jax.tree.map(lambda x: split_rows(x, microbatches), batch)
  (sums, collections), small = lax.scan(part, start, parts)
  return sums, collections, jax.tree.map(lambda x: jnp.sum(x, axis=0), small)


def split_rows(x_B: Array, parts: int) -> Array:
  """[B, ...] to [parts, B / parts, ...]; part m has the rows m, m + parts, ...

  Every device has rows of each part among its own, so that none moves.
  """
  rows = x_B.shape[0] // parts
  x = x_B.reshape(rows, parts, *x_B.shape[1:]).swapaxes(0, 1)
  axes = dividing_axes(BATCH_AXES, [rows])
  return lax.with_sharding_constraint(x, P(None, axes)) if axes else x
