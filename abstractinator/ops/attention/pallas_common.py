"""FlashAttention by three kernels, of which each platform has its own.

Only the result and one number per query are kept for the backward pass. In
shapes, n is the number of blocks of ids of a row, and X any width.

Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from abstractinator.types import Array

# Score of a key that a query does not see, below any real score. Less the
# largest score of the query, which is never below `FLOOR`, its exponential is
# 0, also for a query that sees no key.
MASK = -1e38
FLOOR = -1e30
# Contracted axes of a product: `x @ y.T` and `x @ y`.
ROWS, COLUMNS = ((1,), (1,)), ((1,), (0,))
_MAX_WIDTH = 256
# Products of each score with vectors as wide as keys, and as wide as values.
_PRODUCTS = {
  'forward': (1, 1),
  'backward_queries': (2, 1),
  'backward_keys': (2, 2),
}


@dataclasses.dataclass(frozen=True)
class BlockLayout:
  """Sizes and constants that all programs of a kernel have in common.

  Attributes:
    block: Number of ids of a block.
    key_width: Width A of a head of queries or keys.
    value_width: Width E of a head of values.
    window: Number of ids before itself that an id sees; None for all.
    scale: Factor on the scores.
  """

  block: int
  key_width: int
  value_width: int
  window: int | None
  scale: float


class Kernels(Protocol):
  """Kernels of one platform, in a hashable form.

  The platform says how arrays of vectors (queries, keys, values, results),
  groups, and numbers (one float32 per query and head) are laid out.
  """

  def limits(self, group: Array) -> tuple[Array, Array]:
    """Returns both bounds of `visible_blocks`, or arrays in their place."""

  def out_shapes(
    self, q: Array, v: Array
  ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns shape and type of the result, and of one number per query."""

  def call(
    self,
    kernel: str,
    limit: Array,
    *,
    own: Sequence[Array],
    near: Sequence[Array],
    outputs: Sequence[Array | jax.ShapeDtypeStruct],
  ) -> Sequence[Array]:
    """Runs 'forward', 'backward_queries' or 'backward_keys' over all blocks.

    The own block of a program is one of queries, and near blocks are those
    before it; for 'backward_keys' it is one of keys, and they are after it.
    `limit` is the farthest block that each block has to meet, [B, n] int32;
    `own` and `near` are inputs at the own and the near blocks, groups first;
    `outputs` are shapes and types of what is written at the own block.
    """


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def flash_attention(
  q: Array, k: Array, v: Array, group: Array, kernels: Kernels
) -> Array:
  """Computes `api.attention` of arrays that are laid out for the kernels."""
  return _forward(q, k, v, group, kernels)[0]


def _forward(q, k, v, group, kernels):
  first, _ = kernels.limits(group)
  out, log_total = kernels.call(
    'forward',
    first,
    own=[group, q],
    near=[_key_group(group), k, v],
    outputs=kernels.out_shapes(q, v),
  )
  return out, (q, k, v, group, out, log_total)


def _backward(kernels, saved, grad):
  q, k, v, group, out, log_total = saved
  first, last = kernels.limits(group)
  grad_q, mean = kernels.call(
    'backward_queries',
    first,
    own=[group, q, grad, out, log_total],
    near=[_key_group(group), k, v],
    outputs=[q, log_total],
  )
  grad_k, grad_v = kernels.call(
    'backward_keys',
    last,
    own=[_key_group(group), k, v],
    near=[group, q, grad, log_total, mean],
    outputs=[k, v],
  )
  return grad_q, grad_k, grad_v, None


flash_attention.defvjp(_forward, _backward)


def _key_group(group: Array) -> Array:
  """Returns groups of keys: -2 for none, which equals no query's group."""
  return jnp.where(group < 0, -2, group)


def require_width(
  op: str, *arrays: Array, name: str = 'pallas', widest: int = _MAX_WIDTH
) -> None:
  """Raises NotImplementedError if [B, S, G, X] heads are too wide."""
  width = max(x.shape[3] for x in arrays)
  if width > widest:
    raise NotImplementedError(
      f'{op} by {name!r}: got heads {width} wide, allowed: at most {widest}'
    )


def dot(
  x: Array, y: Array, contracting: tuple[tuple[int], tuple[int]]
) -> Array:
  """Returns the product of two matrices of one type, in float32.

  `contracting` is `ROWS` for x @ y.T, `COLUMNS` for x @ y.
  """
  return lax.dot_general(
    x,
    y,
    (contracting, ((), ())),
    # By default float32 would be rounded to bfloat16 (TPU) or tf32 (GPU) first.
    precision='highest' if x.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def cost_estimate(
  kernel: str,
  layout: BlockLayout,
  scores: int,
  arrays: Sequence[Array | jax.ShapeDtypeStruct],
) -> pl.CostEstimate:
  """Returns the cost of a kernel, which XLA cannot count by itself.

  `scores` counts them over all rows, heads and pairs of ids; `arrays` are
  inputs and outputs.
  """
  of_keys, of_values = _PRODUCTS[kernel]
  width = of_keys * layout.key_width + of_values * layout.value_width
  return pl.CostEstimate(
    flops=2 * scores * width,
    transcendentals=scores,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
  )


def visible_blocks(
  group_BS: Array, block: int, window: int | None
) -> tuple[Array, Array]:
  """Returns bounds on which blocks of ids see which, by groups and window.

  A block may see itself. Between the bounds there may be blocks with no visible
  pair of ids. S is a multiple of the block.

  Returns:
    The first block that each block may see, and the last block that may see it,
    [B, n] int32 each.
  """
  index = jnp.arange(group_BS.shape[1] // block)
  group = group_BS.reshape(group_BS.shape[0], -1, block)
  lowest = jnp.min(
    jnp.where(group >= 0, group, jnp.iinfo(jnp.int32).max), axis=-1
  )
  highest = jnp.max(group, axis=-1)
  distance = index[:, None] - index[None, :]
  reach = len(index) if window is None else -(-window // block)
  # A block all of whose groups are smaller is not seen. Documents and segments
  # do not decrease: where they do, more is looked at and the same is seen.
  sees = (highest[:, None, :] >= lowest[:, :, None]) & (distance >= 0)
  sees = (sees & (distance <= reach)) | (distance == 0)
  first = jnp.argmax(sees, axis=2)
  last = len(index) - 1 - jnp.argmax(sees[:, ::-1], axis=1)
  return first.astype(jnp.int32), last.astype(jnp.int32)
