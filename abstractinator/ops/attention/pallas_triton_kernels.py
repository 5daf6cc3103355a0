"""Bodies of the attention kernels for GPU: what one program of a grid does.

A program has one head of one block of ids, and loops over the blocks that it
sees, or that see it. References to those reach over a whole row; nothing is
read before it is asked for. Tiles are as wide as the next power of two, what
is beyond the width of a head is read as 0. Scores are in bits, not nats, for
`exp2` is what the hardware has. Where all of two blocks is within the window
nothing but groups are compared: to mask a score costs as much as its weight.
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

# See `pallas_tpu_kernels`.
MASK = -1e38
FLOOR = -1e30
_ROWS, _COLUMNS = ((1,), (1,)), ((1,), (0,))
_BITS = 1 / math.log(2)


def forward(
  first_ref,
  group_ref,
  q_ref,
  k_ref,
  v_ref,
  out_ref,
  log_total_ref,
  *,
  plan,
):
  """A block of queries: result, and log2 of the total weight of each."""
  q = _tile(q_ref, plan.key_width)

  def meet(at, sees, state):
    largest, total, out = state
    k = _tile(k_ref.at[at], plan.key_width)
    v = _tile(v_ref.at[at], plan.value_width)
    score = jnp.where(sees, _dot(q, k, _ROWS) * (plan.scale * _BITS), MASK)
    new = jnp.maximum(largest, jnp.max(score, axis=1))
    weight = jnp.exp2(score - new[:, None])
    decay = jnp.exp2(largest - new)
    total = total * decay + jnp.sum(weight, axis=1)
    value = _dot(weight.astype(v.dtype), v, _COLUMNS)
    return new, total, out * decay[:, None] + value

  start = (
    jnp.full((plan.block,), FLOOR, jnp.float32),
    jnp.zeros((plan.block,), jnp.float32),
    jnp.zeros((plan.block, out_ref.shape[1]), jnp.float32),
  )
  largest, total, out = _past(meet, start, first_ref, group_ref, plan)
  is_seeing = total > 0
  total = jnp.where(is_seeing, total, 1.0)
  _put(out_ref, out / total[:, None], plan.value_width)
  # So that the weights of a query that sees nothing are 0 going backward.
  log_total_ref[...] = jnp.where(is_seeing, largest + jnp.log2(total), -FLOOR)


def backward_queries(
  first_ref,
  group_ref,
  q_ref,
  k_ref,
  v_ref,
  grad_ref,
  out_ref,
  log_total_ref,
  grad_q_ref,
  mean_ref,
  *,
  plan,
):
  """A block of queries: gradients, and what softmax takes off each weight's."""
  q = _tile(q_ref, plan.key_width)
  grad = _tile(grad_ref, plan.value_width)
  out = _tile(out_ref, plan.value_width)
  mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=1)
  mean_ref[...] = mean
  log_total = log_total_ref[...]

  def meet(at, sees, grad_q):
    k = _tile(k_ref.at[at], plan.key_width)
    v = _tile(v_ref.at[at], plan.value_width)
    score = jnp.where(sees, _dot(q, k, _ROWS) * (plan.scale * _BITS), MASK)
    weight = jnp.exp2(score - log_total[:, None])
    grad_score = weight * (_dot(grad, v, _ROWS) - mean[:, None])
    return grad_q + _dot(grad_score.astype(k.dtype), k, _COLUMNS)

  start = jnp.zeros(q.shape, jnp.float32)
  grad_q = _past(meet, start, first_ref, group_ref, plan)
  _put(grad_q_ref, grad_q * plan.scale, plan.key_width)


def backward_keys(
  last_ref,
  group_ref,
  q_ref,
  k_ref,
  v_ref,
  grad_ref,
  log_total_ref,
  mean_ref,
  grad_k_ref,
  grad_v_ref,
  *,
  plan,
):
  """A block of keys: gradients of it and of its values, from one head."""
  k = _tile(k_ref, plan.key_width)
  v = _tile(v_ref, plan.value_width)

  def meet(at, sees, state):
    grad_k, grad_v = state
    q = _tile(q_ref.at[at], plan.key_width)
    grad = _tile(grad_ref.at[at], plan.value_width)
    score = jnp.where(sees, _dot(k, q, _ROWS) * (plan.scale * _BITS), MASK)
    weight = jnp.exp2(score - log_total_ref[at][None, :])
    grad_v += _dot(weight.astype(grad.dtype), grad, _COLUMNS)
    grad_score = weight * (_dot(v, grad, _ROWS) - mean_ref[at][None, :])
    return grad_k + _dot(grad_score.astype(q.dtype), q, _COLUMNS), grad_v

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  grad_k, grad_v = _future(meet, start, last_ref, group_ref, plan)
  _put(grad_k_ref, grad_k * plan.scale, plan.key_width)
  _put(grad_v_ref, grad_v, plan.value_width)


def _past(meet, state, first_ref, group_ref, plan):
  """Meets the blocks that a block of queries sees, its own last.

  Args:
    meet: From the place of a block, what is seen of it, [own, other] bool, and
      the state to the next state.
    state: The first.
    first_ref: First block that each may see.
    group_ref: Group of each id.
    plan: Of the kernel.

  Returns:
    The last state.
  """
  index = pl.program_id(1)
  own = _own_group(group_ref, index, plan)
  query = _positions(index, plan)[:, None]

  def sees(near, *, is_own=False, is_edge=False):
    at, key = _place(near, plan), _positions(near, plan)[None, :]
    seen = own[:, None] == group_ref[at][None, :]
    if is_own:
      seen &= query >= key
    if is_edge:
      seen &= query - plan.window <= key
    return at, seen

  first, inner = first_ref[index], _inner_blocks(plan)
  if inner is None:
    whole = first
  else:
    whole = jnp.maximum(first, index - inner)
    state = lax.fori_loop(
      first, whole, lambda i, s: meet(*sees(i, is_edge=True), s), state
    )
  state = lax.fori_loop(whole, index, lambda i, s: meet(*sees(i), s), state)
  is_edge = plan.window is not None and plan.window < plan.block - 1
  return meet(*sees(index, is_own=True, is_edge=is_edge), state)


def _future(meet, state, last_ref, group_ref, plan):
  """Meets the blocks that see a block of keys, its own first; see `_past`."""
  index = pl.program_id(1)
  own = _own_group(group_ref, index, plan)
  key = _positions(index, plan)[:, None]

  def sees(near, *, is_own=False, is_edge=False):
    at, query = _place(near, plan), _positions(near, plan)[None, :]
    seen = own[:, None] == group_ref[at][None, :]
    if is_own:
      seen &= query >= key
    if is_edge:
      seen &= query <= key + plan.window
    return at, seen

  is_edge = plan.window is not None and plan.window < plan.block - 1
  state = meet(*sees(index, is_own=True, is_edge=is_edge), state)
  end, inner = last_ref[index] + 1, _inner_blocks(plan)
  whole = end if inner is None else jnp.minimum(end, index + inner + 1)
  state = lax.fori_loop(index + 1, whole, lambda i, s: meet(*sees(i), s), state)
  if inner is None:
    return state
  return lax.fori_loop(
    whole, end, lambda i, s: meet(*sees(i, is_edge=True), s), state
  )


def _inner_blocks(plan):
  """Blocks beside the own one that are within the window for all of it."""
  if plan.window is None:
    return None
  return max((plan.window - plan.block + 1) // plan.block, 0)


def _place(index, plan):
  return pl.ds(index * plan.block, plan.block)


def _positions(index, plan):
  return index * plan.block + jnp.arange(plan.block, dtype=jnp.int32)


def _own_group(group_ref, index, plan):
  """Groups of a block; none is that of no other id either."""
  group = group_ref[_place(index, plan)]
  return jnp.where(group >= 0, group, -2)


def _is_inside(shape, width):
  return None if shape[1] == width else (jnp.arange(shape[1]) < width)[None]


def _tile(ref, width):
  """Reads a tile, with zeros beyond the width of a head."""
  mask = _is_inside(ref.shape, width)
  return plt.load(ref, mask=mask, other=None if mask is None else 0)


def _put(ref, value, width):
  plt.store(ref, value.astype(ref.dtype), mask=_is_inside(ref.shape, width))


def _dot(x, y, contracting):
  """Sums in float32; by default float32 would be rounded to tf32 first."""
  return lax.dot_general(
    x,
    y,
    (contracting, ((), ())),
    precision='highest' if x.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
