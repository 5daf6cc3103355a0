"""Bodies of the kernels that pool segments on TPU.

A step has a run of ids of one row and one group of heads. Everything an id has
one number of (scores, weights) lies with ids along lanes, [heads, ids]: a
segment is then a run of lanes, and its maximum and sum come by rotation.

Since slots do not decrease, a segment is complete within a step, except that
the first may go on from the step before. The weights of a step are normalised
by what is known up to it; what the open slot holds is scaled down for that.

Values go to their slots by a product with a one-hot matrix: a block of ids
reaches a window of slots, mostly the next few. In bfloat16 all products but the
scores' gradients have exact factors or ones rounded as values are.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from abstractinator.ops.segment_pool import lane_runs, slot_windows
from abstractinator.ops.segment_pool.slot_windows import BLOCK

# Score of an id without a slot.
NOTHING = -1e30


def forward(
  first_ref,
  last_ref,
  slot_ref,
  score_ref,
  value_ref,
  expand_ref,
  out_ref,
  norm_ref,
  sum_ref,
  largest_ref,
  total_ref,
):
  """Writes means, and per id what its segment's weights are divided by so far.

  Args:
    first_ref: [B, blocks] int32, slot of the first id of each block.
    last_ref: Likewise of the last.
    slot_ref: [1, ids] int32.
    score_ref: [heads, ids] float32.
    value_ref: [ids, lanes].
    expand_ref: [heads, lanes], 1 in the lanes of a head.
    out_ref: [P, lanes].
    norm_ref: [2, heads, ids] float32, the largest score of an id's segment, and
      the sum of the exponentials of scores less that; not two in one number,
      which could not hold both.
    sum_ref: [slots, lanes] float32, means so far.
    largest_ref: [heads, 1] float32, of the open segment.
    total_ref: Likewise.
  """
  row, step = pl.program_id(0), pl.program_id(2)

  @pl.when(step == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)
    largest_ref[...] = jnp.full_like(largest_ref, NOTHING)
    total_ref[...] = jnp.zeros_like(total_ref)

  heads, ids = score_ref.shape
  blocks = ids // BLOCK
  score = score_ref[...]
  slot = jnp.broadcast_to(slot_ref[...], (heads, ids))
  before, after = lane_runs.neighbours(slot)
  previous = last_ref[row, jnp.maximum(step * blocks - 1, 0)]
  is_open = (slot == previous) & (step > 0)

  largest = lane_runs.to_all(
    lane_runs.running(score, before, jnp.maximum), after
  )
  largest = jnp.where(is_open, jnp.maximum(largest, largest_ref[...]), largest)
  weight = jnp.where(score > NOTHING / 2, jnp.exp(score - largest), 0.0)
  total = lane_runs.to_all(lane_runs.running(weight, before, jnp.add), after)
  carried = total_ref[...] * jnp.exp(largest_ref[...] - largest)
  total = jnp.where(is_open, total + carried, total)
  safe_total = jnp.where(total > 0, total, 1.0)
  share = weight / safe_total
  norm_ref[0], norm_ref[1] = largest, safe_total

  @pl.when((first_ref[row, step * blocks] == previous) & (step > 0))
  def _():
    kept = (carried / safe_total)[:, :1] * expand_ref[...].astype(jnp.float32)
    open_row = pl.ds(previous, 1)
    sum_ref[open_row] = sum_ref[open_row] * jnp.sum(kept, 0, keepdims=True)

  largest_ref[...] = largest[:, -1:]
  total_ref[...] = total[:, -1:]

  def add(block, number):
    lanes = pl.ds(block * BLOCK, BLOCK)
    index = step * blocks + block
    hot, window = slot_windows.window(
      slot_ref[:, lanes], first_ref[row, index], number, sum_ref
    )
    dtype = value_ref.dtype
    weight = _product(
      share[:, block * BLOCK : (block + 1) * BLOCK].astype(dtype),
      expand_ref[...],
      (0, 0),
    )
    # What weighs nothing is not read, whatever it is.
    value = jnp.where(
      weight != 0, weight * value_ref[lanes].astype(jnp.float32), 0.0
    )
    sum_ref[window] += _product(hot.astype(dtype), value.astype(dtype), (1, 0))

  for block in range(blocks):
    add(block, 0)

  @pl.when(
    slot_windows.is_wide(first_ref, last_ref, row, step, blocks, sum_ref)
  )
  def _():
    for block in range(blocks):
      count = slot_windows.num_windows(
        first_ref, last_ref, row, step * blocks + block, sum_ref
      )
      lax.fori_loop(1, count, lambda n, _, block=block: add(block, n), None)

  @pl.when(step == pl.num_programs(2) - 1)
  def _():
    out_ref[...] = sum_ref[: out_ref.shape[0]].astype(out_ref.dtype)


def backward(
  first_ref,
  last_ref,
  slot_ref,
  score_ref,
  norm_ref,
  value_ref,
  expand_ref,
  delta_ref,
  *refs,
):
  """Writes the gradients; steps go from the last ids to the first.

  Args:
    first_ref: See `forward`; likewise the others.
    last_ref: Likewise.
    slot_ref: Likewise.
    score_ref: [Q, heads, ids] float32.
    norm_ref: [Q, 2, heads, ids] float32, from `forward`; of a segment over
      several steps, that of its last ids is the whole one's.
    value_ref: Likewise.
    expand_ref: Likewise.
    delta_ref: [Q, slots, heads] float32, output . its gradient.
    *refs: Of each query [slots, lanes], the gradient of its output; then what
      is written, [Q, heads, ids] float32 of the scores and [ids, lanes] of the
      values; then [Q, 2, heads, 1] float32, the norm of the open segment.
  """
  *grad_refs, grad_score_ref, grad_value_ref, carry_ref = refs
  queries, heads, ids = score_ref.shape
  blocks = ids // BLOCK
  row = pl.program_id(0)
  steps = pl.num_programs(2)
  step = steps - 1 - pl.program_id(2)
  slot = jnp.broadcast_to(slot_ref[...], (heads, ids))
  following = first_ref[
    row, jnp.minimum((step + 1) * blocks, steps * blocks - 1)
  ]
  is_open = (slot == following) & (step < steps - 1)
  shares = []
  for q in range(queries):
    score = score_ref[q]
    largest, total = (
      jnp.where(is_open, carry_ref[q, i], norm_ref[q, i]) for i in range(2)
    )
    carry_ref[q, 0], carry_ref[q, 1] = largest[:, :1], total[:, :1]
    weight = jnp.where(score > NOTHING / 2, jnp.exp(score - largest), 0.0)
    shares.append(weight / total)

  dtype = value_ref.dtype
  expand = expand_ref[...]

  def write(gather):
    for block in range(blocks):
      lanes = pl.ds(block * BLOCK, BLOCK)
      static = slice(block * BLOCK, (block + 1) * BLOCK)
      value = value_ref[lanes].astype(jnp.float32)
      grad_value = jnp.zeros_like(value)
      for q, share in enumerate(shares):
        grad, delta = gather(block, q)
        share = share[:, static]
        grad_value += _product(share.astype(dtype), expand, (0, 0)) * grad
        slope = _sum_of_heads(grad * value, expand) - delta
        grad_score_ref[q, :, lanes] = jnp.where(share > 0, share * slope, 0.0)
      grad_value_ref[lanes] = grad_value.astype(dtype)

  def of_window(block, q, number):
    """Gradient and delta of each id's slot, if it is in the window."""
    lanes = pl.ds(block * BLOCK, BLOCK)
    first = first_ref[row, step * blocks + block]
    hot, window = slot_windows.window(
      slot_ref[:, lanes], first, number, grad_refs[q]
    )
    grad = _product(hot.astype(dtype), grad_refs[q][window], (0, 0))
    delta = _product(delta_ref[q, window], hot.astype(jnp.float32), (0, 0))
    return grad, delta

  def of_all_windows(block, q):
    count = slot_windows.num_windows(
      first_ref, last_ref, row, step * blocks + block, grad_refs[q]
    )
    return lax.fori_loop(
      1,
      count,
      lambda n, x: jax.tree.map(jnp.add, x, of_window(block, q, n)),
      of_window(block, q, 0),
    )

  write(functools.partial(of_window, number=0))

  @pl.when(
    slot_windows.is_wide(first_ref, last_ref, row, step, blocks, grad_refs[0])
  )
  def _():
    write(of_all_windows)


def _sum_of_heads(x, expand):
  """Sums the lanes of each head: [ids, lanes] float32 to [heads, ids]."""
  if expand.dtype == jnp.float32:
    return _product(expand, x, (1, 1))
  # Two numbers of bfloat16 hold 16 bits of each factor.
  high = x.astype(expand.dtype)
  low = (x - high.astype(jnp.float32)).astype(expand.dtype)
  return _product(expand, high, (1, 1)) + _product(expand, low, (1, 1))


def _product(a, b, contract):
  """A product over one dimension of each, exact but for rounding at the end."""
  is_float32 = a.dtype == jnp.float32
  return lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=lax.Precision.HIGHEST if is_float32 else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )
