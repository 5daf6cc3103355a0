"""Bodies of the attention kernels for TPU: the work of one program of a grid.

A program has a few heads of one block of ids, side by side in the lanes, and
meets near blocks: those that its block may see, or that may see it. It meets
all of them at once if the grid has one step, else one per step, with unfinished
sums in scratch memory. An offset is the distance to a near block, in blocks.

References come in the order of `pallas_common.Kernels.call`: limits, inputs of
the own block, inputs of each near block, outputs; then scratch memory. Queries
see keys of their own group; ids of no group have group -1 as queries and -2 as
keys, and blocks beyond the ends of a row get group -3.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from abstractinator.ops.attention.pallas_common import (
  COLUMNS,
  FLOOR,
  MASK,
  ROWS,
  dot,
)
from abstractinator.ops.attention.pallas_tpu_layout import TpuLayout
from abstractinator.types import Array


def forward(first_ref: jax.Ref, *refs: jax.Ref, layout: TpuLayout) -> None:
  """Computes the result of a block of queries, and the log of total weights."""
  (group_ref, q_ref), near, rest = _split(refs, layout, 2, 3)
  group_refs, key_refs, value_refs = near
  out_ref, log_total_ref, *scratch = rest
  index = pl.program_id(2)

  def meet(offsets):
    sees = _sees(group_ref, group_refs, index, offsets, layout, -1)
    for head in range(layout.heads_per_program):
      at, key_at, value_at, out_at = layout.lanes(head)
      column = slice(head, head + 1)
      scores = _scores(q_ref[:, at], key_refs, key_at, sees, layout)
      tops = (jnp.max(s, axis=1, keepdims=True) for s in scores)
      largest = jnp.maximum(functools.reduce(jnp.maximum, tops), FLOOR)
      if scratch:
        largest = jnp.maximum(largest, scratch[0][:, column])
      weights = [jnp.exp(s - largest) for s in scores]
      total = sum(jnp.sum(w, axis=1, keepdims=True) for w in weights)
      out = sum(
        dot(w.astype(v_ref.dtype), v_ref[:, value_at], COLUMNS)
        for w, v_ref in zip(weights, value_refs, strict=True)
      )
      if not scratch:
        finish(head, largest, total, out)
        continue
      largest_ref, total_ref, sum_ref = scratch
      decay = jnp.exp(largest_ref[:, column] - largest)
      largest_ref[:, column] = largest
      total_ref[:, column] = total_ref[:, column] * decay + total
      sum_ref[:, out_at] = sum_ref[:, out_at] * decay + out

  def finish(head, largest, total, out):
    is_seeing = total > 0
    total = jnp.where(is_seeing, total, 1.0)
    *_, out_at = layout.lanes(head)
    out_ref[:, out_at] = (out / total).astype(out_ref.dtype)
    # The weights of a query that sees no key become 0 in the backward pass.
    log_total = jnp.where(is_seeing, largest + jnp.log(total), -FLOOR)
    log_total_ref[head : head + 1, :] = log_total.reshape(1, -1)

  def finish_all():
    largest_ref, total_ref, sum_ref = scratch
    for head in range(layout.heads_per_program):
      column, (*_, out_at) = slice(head, head + 1), layout.lanes(head)
      state = largest_ref[:, column], total_ref[:, column], sum_ref[:, out_at]
      finish(head, *state)

  starts = (FLOOR, 0.0, 0.0)
  _over_steps(meet, finish_all, scratch, starts, first_ref, layout, -1)


def backward_queries(
  first_ref: jax.Ref, *refs: jax.Ref, layout: TpuLayout
) -> None:
  """Computes gradients of a block of queries, and the mean over their weights.

  The mean is that of the gradients of a query's weights, each times its weight:
  the pullback of softmax subtracts it from the gradient of each weight.
  """
  own, near, rest = _split(refs, layout, 5, 3)
  group_ref, q_ref, grad_ref, out_ref, log_total_ref = own
  group_refs, key_refs, value_refs = near
  grad_q_ref, mean_ref, *scratch = rest
  index = pl.program_id(2)

  def meet(offsets):
    sees = _sees(group_ref, group_refs, index, offsets, layout, -1)
    for head in range(layout.heads_per_program):
      at, key_at, value_at, out_at = layout.lanes(head)
      row = slice(head, head + 1)
      grad = grad_ref[:, out_at]
      log_total = log_total_ref[row, :].reshape(-1, 1)
      mean = jnp.sum(
        grad.astype(jnp.float32) * out_ref[:, out_at].astype(jnp.float32),
        axis=1,
        keepdims=True,
      )
      mean_ref[row, :] = mean.reshape(1, -1)
      scores = _scores(q_ref[:, at], key_refs, key_at, sees, layout)
      grad_q: Array | float = 0.0
      for score, k_ref, v_ref in zip(scores, key_refs, value_refs, strict=True):
        weight = jnp.exp(score - log_total)
        grad_score = weight * (dot(grad, v_ref[:, value_at], ROWS) - mean)
        k = k_ref[:, key_at]
        grad_q += dot(grad_score.astype(k.dtype), k, COLUMNS)
      _add(grad_q, at, grad_q_ref, scratch, layout.scale)

  def finish():
    _write(grad_q_ref, slice(None), scratch[0][...], layout.scale)

  _over_steps(meet, finish, scratch, (0.0,), first_ref, layout, -1)


def backward_keys(last_ref: jax.Ref, *refs: jax.Ref, layout: TpuLayout) -> None:
  """Computes gradients of a block of keys and of its values.

  Scores have keys in rows, such that the numbers per query lie along the lanes,
  as they do in memory.
  """
  (group_ref, k_ref, v_ref), near, rest = _split(refs, layout, 3, 5)
  group_refs, q_refs, grad_refs, log_total_refs, mean_refs = near
  grad_k_ref, grad_v_ref, *scratch = rest
  index = pl.program_id(2)

  def meet(offsets):
    sees = _sees(group_ref, group_refs, index, offsets, layout, 1)
    # Gradients by their first lane, summed over heads that share it with a key
    # or a value.
    sums_k: dict[int, Array | float] = {}
    sums_v: dict[int, Array | float] = {}
    for head in range(layout.heads_per_program):
      at, key_at, value_at, out_at = layout.lanes(head)
      row = slice(head, head + 1)
      k, v = k_ref[:, key_at], v_ref[:, value_at]
      grad_k: Array | float = 0.0
      grad_v: Array | float = 0.0
      for i, mask in enumerate(sees):
        q, grad = q_refs[i][:, at], grad_refs[i][:, out_at]
        score = jnp.where(mask, dot(k, q, ROWS) * layout.scale, MASK)
        weight = jnp.exp(score - log_total_refs[i][row, :])
        grad_v += dot(weight.astype(grad.dtype), grad, COLUMNS)
        grad_weight = dot(v, grad, ROWS)
        grad_score = weight * (grad_weight - mean_refs[i][row, :])
        grad_k += dot(grad_score.astype(q.dtype), q, COLUMNS)
      key, value = key_at.start, value_at.start
      sums_k[key] = sums_k.get(key, 0.0) + grad_k
      sums_v[value] = sums_v.get(value, 0.0) + grad_v
    for start, grad_k in sums_k.items():
      at = slice(start, start + layout.key_width)
      _add(grad_k, at, grad_k_ref, scratch[:1], layout.scale)
    for start, grad_v in sums_v.items():
      at = slice(start, start + layout.value_width)
      _add(grad_v, at, grad_v_ref, scratch[1:], 1.0)

  def finish():
    _write(grad_k_ref, slice(None), scratch[0][...], layout.scale)
    _write(grad_v_ref, slice(None), scratch[1][...], 1.0)

  _over_steps(meet, finish, scratch, (0.0, 0.0), last_ref, layout, 1)


def _over_steps(
  meet: Callable[[Sequence[int | Array]], None],
  finish: Callable[[], None],
  scratch: Sequence[jax.Ref],
  starts: Sequence[float],
  limit_ref: jax.Ref,
  layout: TpuLayout,
  direction: int,
) -> None:
  """Meets the near blocks of a program, all at once or one per step.

  Args:
    meet: Function of the offsets of the near blocks at hand. Without scratch
      memory it writes the outputs.
    finish: Function that writes the outputs from scratch memory.
    scratch: References to unfinished sums; none if the grid has one step.
    starts: Value of each of the sums before the first step.
    limit_ref: [B, n] int32, farthest block that each block has to meet.
    layout: Layout of the arrays.
    direction: -1 if the near blocks lie before the own one, 1 if after.
  """
  if not scratch:
    meet(range(layout.reach + 1))
    return
  index, step = pl.program_id(2), pl.program_id(3)

  @pl.when(step == 0)
  def _():
    for ref, start in zip(scratch, starts, strict=True):
      ref[...] = jnp.full_like(ref, start)

  limit = limit_ref[pl.program_id(0), index]
  if direction > 0:
    offset, is_visible = step, index + step <= limit
  else:
    offset = layout.reach - step
    is_visible = index - offset >= limit

  @pl.when(is_visible)
  def _():
    meet([offset])

  pl.when(step == layout.reach)(finish)


def _add(value, lanes, out_ref, scratch, scale):
  """Adds to the sum in scratch memory; without one, writes the output."""
  if scratch:
    scratch[0][:, lanes] += value
  else:
    _write(out_ref, lanes, value, scale)


def _write(out_ref, lanes, value, scale):
  out_ref[:, lanes] = (value * scale).astype(out_ref.dtype)


def _split(refs, layout, num_own, num_near):
  """Returns own inputs, lists of inputs by near block, outputs and scratch."""
  own, count = refs[:num_own], layout.blocks_per_step
  ends = range(num_own, num_own + num_near * count + 1, count)
  near = [refs[i : i + count] for i in ends[:-1]]
  return own, near, refs[ends[-1] :]


def _sees(group_ref, group_refs, index, offsets, layout, direction):
  """Returns which of two ids sees the other, [own, near] bool per near block.

  The own ids are queries that see keys before (direction -1), or keys that are
  seen by queries after (direction 1).
  """
  own = group_ref[...].reshape(-1, 1)
  query_axis = 0 if direction < 0 else 1
  block, window = layout.block, layout.window
  seen = []
  for near_ref, offset in zip(group_refs, offsets, strict=True):
    if direction < 0:
      is_in_row = index >= offset
    else:
      is_in_row = offset < layout.num_blocks - index
    sees = own == jnp.where(is_in_row, near_ref[...], -3)
    distance = (
      lax.broadcasted_iota(jnp.int32, (block, block), query_axis)
      - lax.broadcasted_iota(jnp.int32, (block, block), 1 - query_axis)
      + offset * block
    )
    # A known offset tells which comparisons hold for all pairs of ids.
    is_known = isinstance(offset, int)
    if not is_known or offset == 0:
      sees &= distance >= 0
    if window is not None and (
      not is_known or (offset + 1) * block - 1 > window
    ):
      sees &= distance <= window
    seen.append(sees)
  return seen


def _scores(q, key_refs, lanes, sees, layout):
  """Returns [query, key] scores of one head per near block; MASK if unseen."""
  return [
    jnp.where(mask, dot(q, k_ref[:, lanes], ROWS) * layout.scale, MASK)
    for mask, k_ref in zip(sees, key_refs, strict=True)
  ]
