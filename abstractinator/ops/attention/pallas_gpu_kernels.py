"""Layout and arithmetic that all attention kernels for GPU have in common.

Vectors are [B, S, heads, width], groups [B, S] and numbers [B, H, S].

A program has one head of one block of ids, its own, and meets the near blocks
in the order of their ids: those that it sees, or that see it. Scores are in
bits, not nats, as `exp2` is what the hardware has. Positions are compared only
where a block is partly out of sight, since masking a score costs as much as its
weight.

A backend says how blocks come to a program, and what they are: a part of an
array that it hands over is an array or a reference, of which `x[...]` is the
value. Parts are [block, width] of vectors, as wide as a tile of the backend,
and [block] of groups and of numbers. They come in the order of
`pallas_common.Kernels.call`, without the groups.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.attention.pallas_common import (
  COLUMNS,
  FLOOR,
  MASK,
  ROWS,
  BlockLayout,
  visible_blocks,
)
from abstractinator.types import Array

_BITS_PER_NAT = 1 / math.log(2)


@dataclasses.dataclass(frozen=True)
class GpuKernels:
  """Kernels for GPU, implementing `pallas_common.Kernels` but for a launch.

  Attributes:
    layout: Layout of the arrays.
    heads: Number of heads of the queries.
    interpret: Interpreter to run kernels in, as the backend has it, or False.
  """

  layout: BlockLayout
  heads: int
  interpret: Any

  def limits(self, group: Array) -> tuple[Array, Array]:
    return visible_blocks(group, self.layout.block, self.layout.window)

  def out_shapes(
    self, q: Array, v: Array
  ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    batch, size, heads, _ = q.shape
    return (
      jax.ShapeDtypeStruct((batch, size, heads, v.shape[3]), v.dtype),
      jax.ShapeDtypeStruct((batch, heads, size), jnp.float32),
    )

  def call(
    self,
    kernel: str,
    limit: Array,
    *,
    own: Sequence[Array],
    near: Sequence[Array],
    outputs: Sequence[Array | jax.ShapeDtypeStruct],
  ) -> list[Array]:
    """Implements `Kernels.call`.

    An output that heads share is the sum of float32 parts, one of each head.
    """
    parts = [self._per_head(x) for x in outputs]
    results = self.launch(kernel, (limit, *own, *near), len(own), parts)
    return [
      jnp.sum(part, axis=2, keepdims=True).astype(x.dtype)
      if part.shape != x.shape
      else part
      for part, x in zip(results, outputs, strict=True)
    ]

  def launch(
    self,
    kernel: str,
    arrays: Sequence[Array],
    num_own: int,
    outputs: Sequence[jax.ShapeDtypeStruct],
  ) -> Sequence[Array]:
    """Runs a program for each head, block of ids and row.

    Args:
      kernel: Name of a function of this module.
      arrays: Limits, inputs at the own block and at near blocks.
      num_own: Number of inputs at the own block.
      outputs: Shapes and types of what is written at the own block.
    """
    raise NotImplementedError

  def _per_head(self, x):
    if x.ndim < 4 or x.shape[2] == self.heads:
      return jax.ShapeDtypeStruct(x.shape, x.dtype)
    shape = *x.shape[:2], self.heads, x.shape[3]
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a kernel, as a backend runs it.

  Attributes:
    layout: Layout of the arrays.
    index: Index of the own block.
    limit: Index of the farthest block to meet.
    group: Groups of the own block, [block] int32.
    own: Further parts of the own block.
    near: Function from the index of a block to its groups and further parts. It
      is called once for each block, from the first to the last.
    product: Function from a [block, m] part or array, a part, `ROWS` or
      `COLUMNS` and a float32 sum or None, to their product in float32, added to
      the sum.
    put: Function that writes an output at the own block, from its number among
      the outputs and its value, float32.
    value_width: Width of a tile of values.
  """

  layout: BlockLayout
  index: Array
  limit: Array
  group: Array
  own: Sequence[Any]
  near: Callable[[Array], Sequence[Any]]
  product: Callable[..., Array]
  put: Callable[[int, Array], None]
  value_width: int


def forward(program: Program) -> None:
  """Computes the result of a block of queries, and log2 of total weights."""
  layout, product = program.layout, program.product
  (q,) = program.own

  def meet(near, sees, state):
    (k, v), (largest, total, out) = near, state
    score = _scores(q, k, sees, program)
    new = jnp.maximum(largest, jnp.max(score, axis=1))
    weight = jnp.exp2(score - _column(new, score))
    decay = jnp.exp2(largest - new)
    total = total * decay + jnp.sum(weight, axis=1)
    out = out * _column(decay, out)
    return new, total, product(weight.astype(v.dtype), v, COLUMNS, out)

  start = (
    jnp.full((layout.block,), FLOOR, jnp.float32),
    jnp.zeros((layout.block,), jnp.float32),
    jnp.zeros((layout.block, program.value_width), jnp.float32),
  )
  largest, total, out = _meet_all(meet, start, program, -1)
  is_seeing = total > 0
  total = jnp.where(is_seeing, total, 1.0)
  program.put(0, out / _column(total, out))
  # The weights of a query that sees no key become 0 in the backward pass.
  log_total = largest + jnp.log(total) * _BITS_PER_NAT
  program.put(1, jnp.where(is_seeing, log_total, -FLOOR))


def backward_queries(program: Program) -> None:
  """Computes gradients of a block of queries, and the mean over their weights.

  The mean is that of the gradients of a query's weights, each times its weight:
  the pullback of softmax subtracts it from the gradient of each weight.
  """
  product = program.product
  q, grad, out, log_total = program.own
  mean = jnp.sum(
    grad[...].astype(jnp.float32) * out[...].astype(jnp.float32), axis=1
  )
  # Written at once: at the end it would take more registers.
  program.put(1, mean)
  log_total = log_total[...]

  def meet(near, sees, grad_q):
    k, v = near
    score = _scores(q, k, sees, program)
    weight = jnp.exp2(score - _column(log_total, score))
    grad_weight = product(grad, v, ROWS, None)
    grad_score = weight * (grad_weight - _column(mean, score))
    return product(grad_score.astype(k.dtype), k, COLUMNS, grad_q)

  grad_q = _meet_all(meet, jnp.zeros(q.shape, jnp.float32), program, -1)
  program.put(0, grad_q * program.layout.scale)


def backward_keys(program: Program) -> None:
  """Computes gradients of a block of keys and of its values, from one head."""
  product = program.product
  k, v = program.own

  def meet(near, sees, state):
    (q, grad, log_total, mean), (grad_k, grad_v) = near, state
    score = _scores(k, q, sees, program)
    weight = jnp.exp2(score - _row(log_total[...], score))
    grad_v = product(weight.astype(grad.dtype), grad, COLUMNS, grad_v)
    grad_weight = product(v, grad, ROWS, None)
    grad_score = weight * (grad_weight - _row(mean[...], score))
    return product(grad_score.astype(q.dtype), q, COLUMNS, grad_k), grad_v

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  grad_k, grad_v = _meet_all(meet, start, program, 1)
  program.put(0, grad_k * program.layout.scale)
  program.put(1, grad_v)


def _meet_all(meet, state, program, direction):
  """Meets the own block and the near ones on one side of it.

  Args:
    meet: Function from the parts of a block, which ids see each other, [own,
      near] bool, and a state to the next state.
    state: State before the first block.
    program: The program.
    direction: -1 if the own ids are queries that see keys before them, 1 if
      they are keys that queries after them see.

  Returns:
    The last state.
  """
  index, limit, layout = program.index, program.limit, program.layout
  scores = jax.ShapeDtypeStruct((layout.block, layout.block), jnp.bool_)

  def step(near_index, state, *, is_own=False, is_edge=False):
    group, *near = program.near(near_index)
    sees = _column(program.group, scores) == _row(group[...], scores)
    if is_own or is_edge:
      own = _column(_positions(index, layout), scores)
      other = _row(_positions(near_index, layout), scores)
      query, key = (own, other) if direction < 0 else (other, own)
      if is_own:
        sees &= query >= key
      if is_edge:
        sees &= query - layout.window <= key
    return meet(near, sees, state)

  window = layout.window
  is_edge = window is not None and window < layout.block - 1
  meet_own = functools.partial(step, index, is_own=True, is_edge=is_edge)
  at_edge = functools.partial(step, is_edge=True)
  # Near blocks of which all pairs of ids are within the window.
  inner = None
  if window is not None:
    inner = max((window - layout.block + 1) // layout.block, 0)
  if direction < 0:
    whole = limit if inner is None else jnp.maximum(limit, index - inner)
    if inner is not None:
      state = lax.fori_loop(limit, whole, at_edge, state)
    return meet_own(lax.fori_loop(whole, index, step, state))
  end = limit + 1
  whole = end if inner is None else jnp.minimum(end, index + inner + 1)
  state = lax.fori_loop(index + 1, whole, step, meet_own(state))
  if inner is not None:
    state = lax.fori_loop(whole, end, at_edge, state)
  return state


def _positions(index, layout):
  return index * layout.block + jnp.arange(layout.block, dtype=jnp.int32)


def _column(x, like):
  """Returns numbers of rows, [m], repeated over the columns of `like`."""
  return lax.broadcast_in_dim(x, like.shape, (0,))


def _row(x, like):
  """Returns numbers of columns, [n], repeated over the rows of `like`."""
  return lax.broadcast_in_dim(x, like.shape, (1,))


def _scores(own, near, sees, program):
  """Returns [own, near] scores in bits; MASK if one does not see the other."""
  score = program.product(own, near, ROWS, None)
  score *= program.layout.scale * _BITS_PER_NAT
  return jnp.where(sees, score, MASK)
