"""Bodies of the attention kernels for TPU: what one program of a grid does.

A program has a few heads of one block of ids, side by side in the lanes, and
meets blocks at a distance of `offset` blocks: all of them at once where a grid
has one step, else one a step, with what is unfinished in scratch memory.

Queries see keys of their own group. Before the first and after the last block
there are groups that nothing belongs to.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from abstractinator.ops.attention.pallas_layout import Layout

# Below any score; less the largest score of a query, which is never below
# `FLOOR`, its exponential is 0, also for a query that sees nothing.
MASK = -1e38
FLOOR = -1e30
_ROWS, _COLUMNS = ((1,), (1,)), ((1,), (0,))


def forward(first_ref, q_ref, group_ref, *refs, layout: Layout):
  """A block of queries: result, and log of the total weight of each."""
  near, rest = _split(refs, layout, 3)
  out_ref, log_total_ref, *scratch = rest
  index, step = pl.program_id(2), pl.program_id(3)

  def run(key_refs, value_refs, group_refs, offsets):
    sees = _sees_keys(group_ref, group_refs, index, offsets, layout)
    for head in range(layout.heads_per_program):
      at, _, value_at = layout.lanes(head)
      column = slice(head, head + 1)
      q = q_ref[:, at]
      scores = _scores(q, key_refs, sees, head, layout)
      largest = jnp.maximum(_largest(scores), FLOOR)
      if scratch:
        largest_ref, total_ref, sum_ref = scratch
        largest = jnp.maximum(largest, largest_ref[:, column])
      weights = [jnp.exp(s - largest) for s in scores]
      total = sum(jnp.sum(w, axis=1, keepdims=True) for w in weights)
      out = sum(
        _dot(w.astype(v_ref.dtype), v_ref[:, value_at], _COLUMNS)
        for w, v_ref in zip(weights, value_refs, strict=True)
      )
      out_at = layout.out_lanes(head)
      if not scratch:
        _finish(out_ref, log_total_ref, head, out_at, largest, total, out)
        continue
      decay = jnp.exp(largest_ref[:, column] - largest)
      largest_ref[:, column] = largest
      total_ref[:, column] = total_ref[:, column] * decay + total
      sum_ref[:, out_at] = sum_ref[:, out_at] * decay + out

  if not scratch:
    run(*near, range(layout.reach + 1))
    return
  largest_ref, total_ref, sum_ref = scratch

  @pl.when(step == 0)
  def _():
    largest_ref[...] = jnp.full_like(largest_ref, FLOOR)
    total_ref[...] = jnp.zeros_like(total_ref)
    sum_ref[...] = jnp.zeros_like(sum_ref)

  offset = layout.reach - step

  @pl.when(index - offset >= first_ref[pl.program_id(0), index])
  def _():
    run(*near, [offset])

  @pl.when(step == layout.reach)
  def _():
    for head in range(layout.heads_per_program):
      at = layout.out_lanes(head)
      column = slice(head, head + 1)
      state = largest_ref[:, column], total_ref[:, column], sum_ref[:, at]
      _finish(out_ref, log_total_ref, head, at, *state)


def _finish(out_ref, log_total_ref, head, at, largest, total, out):
  is_seeing = total > 0
  total = jnp.where(is_seeing, total, 1.0)
  out_ref[:, at] = (out / total).astype(out_ref.dtype)
  # So that the weights of a query that sees nothing are 0 going backward.
  log_total = jnp.where(is_seeing, largest + jnp.log(total), -FLOOR)
  log_total_ref[head : head + 1, :] = log_total.reshape(1, -1)


def backward_queries(
  first_ref,
  q_ref,
  group_ref,
  grad_ref,
  out_ref,
  log_total_ref,
  *refs,
  layout: Layout,
):
  """A block of queries: gradients, and what softmax takes off each weight's."""
  near, rest = _split(refs, layout, 3)
  grad_q_ref, mean_ref, *scratch = rest
  index, step = pl.program_id(2), pl.program_id(3)

  def run(key_refs, value_refs, group_refs, offsets):
    sees = _sees_keys(group_ref, group_refs, index, offsets, layout)
    for head in range(layout.heads_per_program):
      at, key_at, value_at = layout.lanes(head)
      out_at = layout.out_lanes(head)
      grad = grad_ref[:, out_at]
      row = slice(head, head + 1)
      log_total = log_total_ref[row, :].reshape(-1, 1)
      mean = jnp.sum(
        grad.astype(jnp.float32) * out_ref[:, out_at].astype(jnp.float32),
        axis=1,
        keepdims=True,
      )
      mean_ref[row, :] = mean.reshape(1, -1)
      scores = _scores(q_ref[:, at], key_refs, sees, head, layout)
      grad_q = 0.0
      for score, k_ref, v_ref in zip(scores, key_refs, value_refs, strict=True):
        weight = jnp.exp(score - log_total)
        grad_score = weight * (_dot(grad, v_ref[:, value_at], _ROWS) - mean)
        k = k_ref[:, key_at]
        grad_q += _dot(grad_score.astype(k.dtype), k, _COLUMNS)
      if scratch:
        scratch[0][:, at] += grad_q
      else:
        grad_q_ref[:, at] = (grad_q * layout.scale).astype(grad_q_ref.dtype)

  if not scratch:
    run(*near, range(layout.reach + 1))
    return
  (sum_ref,) = scratch

  @pl.when(step == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)

  offset = layout.reach - step

  @pl.when(index - offset >= first_ref[pl.program_id(0), index])
  def _():
    run(*near, [offset])

  @pl.when(step == layout.reach)
  def _():
    grad_q_ref[...] = (sum_ref[...] * layout.scale).astype(grad_q_ref.dtype)


def backward_keys(last_ref, k_ref, v_ref, group_ref, *refs, layout: Layout):
  """A block of keys: gradients of it and of its values.

  Scores stand with keys in rows, so that what belongs to queries, one number
  each, lies along the lanes as it does in memory.
  """
  near, rest = _split(refs, layout, 5)
  grad_k_ref, grad_v_ref, *scratch = rest
  index, step = pl.program_id(2), pl.program_id(3)

  def run(q_refs, grad_refs, log_total_refs, mean_refs, group_refs, offsets):
    sees = _sees_queries(group_ref, group_refs, index, offsets, layout)
    sums_k, sums_v = {}, {}
    for head in range(layout.heads_per_program):
      at, key_at, value_at = layout.lanes(head)
      out_at, row = layout.out_lanes(head), slice(head, head + 1)
      k, v = k_ref[:, key_at], v_ref[:, value_at]
      grad_k, grad_v = 0.0, 0.0
      for i, mask in enumerate(sees):
        q, grad = q_refs[i][:, at], grad_refs[i][:, out_at]
        score = jnp.where(mask, _dot(k, q, _ROWS) * layout.scale, MASK)
        weight = jnp.exp(score - log_total_refs[i][row, :])
        grad_v += _dot(weight.astype(grad.dtype), grad, _COLUMNS)
        grad_weight = _dot(v, grad, _ROWS)
        grad_score = weight * (grad_weight - mean_refs[i][row, :])
        grad_k += _dot(grad_score.astype(q.dtype), q, _COLUMNS)
      # Heads that share keys or values have the same place.
      key, value = key_at.start, value_at.start
      sums_k[key] = sums_k.get(key, 0.0) + grad_k
      sums_v[value] = sums_v.get(value, 0.0) + grad_v
    sum_k_ref, sum_v_ref = scratch or (None, None)
    _put(sums_k, grad_k_ref, sum_k_ref, layout.scale)
    _put(sums_v, grad_v_ref, sum_v_ref, 1.0)

  if not scratch:
    run(*near, range(layout.reach + 1))
    return

  @pl.when(step == 0)
  def _():
    for ref in scratch:
      ref[...] = jnp.zeros_like(ref)

  @pl.when(index + step <= last_ref[pl.program_id(0), index])
  def _():
    run(*near, [step])

  @pl.when(step == layout.reach)
  def _():
    scaled = scratch[0][...] * layout.scale
    grad_k_ref[...] = scaled.astype(grad_k_ref.dtype)
    grad_v_ref[...] = scratch[1][...].astype(grad_v_ref.dtype)


def _put(sums, out_ref, scratch_ref, scale):
  for start, value in sums.items():
    at = slice(start, start + value.shape[1])
    if scratch_ref is not None:
      scratch_ref[:, at] += value
    else:
      out_ref[:, at] = (value * scale).astype(out_ref.dtype)


def _split(refs, layout, kinds):
  """`kinds` lists of the near blocks, and the references after them."""
  count = layout.blocks_per_step
  near = [refs[i * count : (i + 1) * count] for i in range(kinds)]
  return near, refs[kinds * count :]


def _sees_keys(group_ref, group_refs, index, offsets, layout):
  """[query, key] bool of each block, `offset` blocks before."""
  own = group_ref[...].reshape(-1, 1)
  return [
    _sees(own, jnp.where(index >= offset, ref[...], -2), offset, layout, 0, 1)
    for ref, offset in zip(group_refs, offsets, strict=True)
  ]


def _sees_queries(group_ref, group_refs, index, offsets, layout):
  """[key, query] bool of each block, `offset` blocks after."""
  own = group_ref[...].reshape(-1, 1)
  end = layout.num_blocks - index
  return [
    _sees(own, jnp.where(offset < end, ref[...], -3), offset, layout, 1, 0)
    for ref, offset in zip(group_refs, offsets, strict=True)
  ]


def _sees(own, other, offset, layout, query_axis, key_axis):
  block, window = layout.block, layout.window
  sees = own == other
  is_static = isinstance(offset, int)
  shape = (block, block)
  distance = (
    lax.broadcasted_iota(jnp.int32, shape, query_axis)
    - lax.broadcasted_iota(jnp.int32, shape, key_axis)
    + offset * block
  )
  if not is_static or offset == 0:
    sees &= distance >= 0
  if window is not None and (
    not is_static or (offset + 1) * block - 1 > window
  ):
    sees &= distance <= window
  return sees


def _scores(q, key_refs, sees, head, layout):
  _, key_at, _ = layout.lanes(head)
  return [
    jnp.where(mask, _dot(q, k_ref[:, key_at], _ROWS) * layout.scale, MASK)
    for mask, k_ref in zip(sees, key_refs, strict=True)
  ]


def _largest(scores):
  largest = (jnp.max(s, axis=1, keepdims=True) for s in scores)
  return functools.reduce(jnp.maximum, largest)


def _dot(x, y, contracting):
  """Sums in float32; by default float32 would be rounded to bfloat16 first."""
  return lax.dot_general(
    x,
    y,
    (contracting, ((), ())),
    precision='highest' if x.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
