"""Bodies of the attention kernels for GPU: the work of one program of a grid.

A program has one head of one block of ids, and loops over the near blocks:
those that it sees, or that see it. Its references to those reach over a whole
row; nothing is read before it is asked for. Tiles are as wide as the next power
of two, and numbers beyond the width of a head are read as 0. Scores are in
bits, not nats, as `exp2` is what the hardware has. Positions are compared only
where a block is partly out of sight, since masking a score costs as much as its
weight.

References come in the order of `pallas_common.Kernels.call`: limits, inputs of
the own block, inputs of the row, outputs.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from abstractinator.ops.attention.pallas_common import (
  COLUMNS,
  FLOOR,
  MASK,
  ROWS,
  BlockLayout,
  dot,
)

_BITS_PER_NAT = 1 / math.log(2)


def forward(first_ref: jax.Ref, *refs: jax.Ref, layout: BlockLayout) -> None:
  """Computes the result of a block of queries, and log2 of total weights."""
  own_ref, q_ref, near_ref, k_ref, v_ref, out_ref, log_total_ref = refs
  q = _tile(q_ref, layout.key_width)

  def meet(at, sees, state):
    largest, total, out = state
    k = _tile(k_ref.at[at], layout.key_width)
    v = _tile(v_ref.at[at], layout.value_width)
    score = _scores(q, k, sees, layout)
    new = jnp.maximum(largest, jnp.max(score, axis=1))
    weight = jnp.exp2(score - new[:, None])
    decay = jnp.exp2(largest - new)
    total = total * decay + jnp.sum(weight, axis=1)
    value = dot(weight.astype(v.dtype), v, COLUMNS)
    return new, total, out * decay[:, None] + value

  start = (
    jnp.full((layout.block,), FLOOR, jnp.float32),
    jnp.zeros((layout.block,), jnp.float32),
    jnp.zeros((layout.block, out_ref.shape[1]), jnp.float32),
  )
  groups = own_ref, near_ref
  largest, total, out = _meet_all(meet, start, first_ref, groups, layout, -1)
  is_seeing = total > 0
  total = jnp.where(is_seeing, total, 1.0)
  _put(out_ref, out / total[:, None], layout.value_width)
  # The weights of a query that sees no key become 0 in the backward pass.
  log_total_ref[...] = jnp.where(is_seeing, largest + jnp.log2(total), -FLOOR)


def backward_queries(
  first_ref: jax.Ref, *refs: jax.Ref, layout: BlockLayout
) -> None:
  """Computes gradients of a block of queries, and the mean over their weights.

  The mean is that of the gradients of a query's weights, each times its weight:
  the pullback of softmax subtracts it from the gradient of each weight.
  """
  own_ref, q_ref, grad_ref, out_ref, log_total_ref, *rest = refs
  near_ref, k_ref, v_ref, grad_q_ref, mean_ref = rest
  q = _tile(q_ref, layout.key_width)
  grad = _tile(grad_ref, layout.value_width)
  out = _tile(out_ref, layout.value_width)
  mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=1)
  mean_ref[...] = mean
  log_total = log_total_ref[...]

  def meet(at, sees, grad_q):
    k = _tile(k_ref.at[at], layout.key_width)
    v = _tile(v_ref.at[at], layout.value_width)
    weight = jnp.exp2(_scores(q, k, sees, layout) - log_total[:, None])
    grad_score = weight * (dot(grad, v, ROWS) - mean[:, None])
    return grad_q + dot(grad_score.astype(k.dtype), k, COLUMNS)

  start = jnp.zeros(q.shape, jnp.float32)
  groups = own_ref, near_ref
  grad_q = _meet_all(meet, start, first_ref, groups, layout, -1)
  _put(grad_q_ref, grad_q * layout.scale, layout.key_width)


def backward_keys(
  last_ref: jax.Ref, *refs: jax.Ref, layout: BlockLayout
) -> None:
  """Computes gradients of a block of keys and of its values, from one head."""
  own_ref, k_ref, v_ref, near_ref, q_ref, grad_ref, *rest = refs
  log_total_ref, mean_ref, grad_k_ref, grad_v_ref = rest
  k = _tile(k_ref, layout.key_width)
  v = _tile(v_ref, layout.value_width)

  def meet(at, sees, state):
    grad_k, grad_v = state
    q = _tile(q_ref.at[at], layout.key_width)
    grad = _tile(grad_ref.at[at], layout.value_width)
    score = _scores(k, q, sees, layout)
    weight = jnp.exp2(score - log_total_ref[at][None, :])
    grad_v += dot(weight.astype(grad.dtype), grad, COLUMNS)
    grad_score = weight * (dot(v, grad, ROWS) - mean_ref[at][None, :])
    return grad_k + dot(grad_score.astype(q.dtype), q, COLUMNS), grad_v

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  groups = own_ref, near_ref
  grad_k, grad_v = _meet_all(meet, start, last_ref, groups, layout, 1)
  _put(grad_k_ref, grad_k * layout.scale, layout.key_width)
  _put(grad_v_ref, grad_v, layout.value_width)


def _meet_all(meet, state, limit_ref, group_refs, layout, direction):
  """Meets the own block and the near ones on one side of it.

  Args:
    meet: Function from the slice of a block, which ids see each other, [own,
      near] bool, and a state to the next state.
    state: State before the first block.
    limit_ref: [n] int32, farthest block that each block has to meet.
    group_refs: Groups of the own block, and groups of the row, int32.
    layout: Layout of the arrays.
    direction: -1 if the own ids are queries that see keys before them, 1 if
      they are keys that queries after them see.

  Returns:
    The last state.
  """
  index, (own_group_ref, group_ref) = pl.program_id(1), group_refs
  own_group = own_group_ref[...][:, None]
  own = _positions(index, layout)[:, None]

  def step(near_index, state, *, is_own=False, is_edge=False):
    at = pl.ds(near_index * layout.block, layout.block)
    near = _positions(near_index, layout)[None, :]
    query, key = (own, near) if direction < 0 else (near, own)
    sees = own_group == group_ref[at][None, :]
    if is_own:
      sees &= query >= key
    if is_edge:
      sees &= query - layout.window <= key
    return meet(at, sees, state)

  limit, window = limit_ref[index], layout.window
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


def _scores(own, near, sees, layout):
  """Returns [own, near] scores in bits; MASK if one does not see the other."""
  score = dot(own, near, ROWS) * (layout.scale * _BITS_PER_NAT)
  return jnp.where(sees, score, MASK)


def _is_inside(shape, width):
  return None if shape[1] == width else (jnp.arange(shape[1]) < width)[None]


def _tile(ref, width):
  """Returns a tile, with zeros beyond the width of a head."""
  mask = _is_inside(ref.shape, width)
  return plt.load(ref, mask=mask, other=None if mask is None else 0)


def _put(ref, value, width):
  """Writes a tile, up to the width of a head."""
  plt.store(ref, value.astype(ref.dtype), mask=_is_inside(ref.shape, width))
