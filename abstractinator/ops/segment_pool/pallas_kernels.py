"""Bodies of the kernels that pool segments on TPU.

A step has a run of ids of one row and one group of heads. Arrays with one
number per id (scores, weights) have ids along lanes, [heads, ids]: a segment is
then a run of lanes, and its maximum and sum are found by rotations.

Since slots do not decrease, a segment is complete within a step, except that
the first one may have begun in the step before. The weights of a step are
divided by the sums known up to this step; the mean of a slot that continues is
scaled down when its sum grows.

Values go to their slots by a product with a one-hot matrix. A block of ids
reaches from the slot of its first id to that of its last: mostly one window of
slots, sometimes more. In bfloat16 the factors of all products are exact or
rounded like values, except those of the gradients of the scores.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Ref, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.attention.pallas_common import COLUMNS, ROWS, dot
from abstractinator.types import Array

# Contracted axes of the product `x.T @ y`.
FIRST = ((0,), (0,))
# Score of an id without a slot.
NOTHING = -1e30
# Ids of a product: a tile of lanes.
BLOCK = 128
# Windows of slots begin at multiples of this: a tile of bfloat16 rows.
ALIGNMENT = 16


def forward(*refs: Ref) -> None:
  """Writes the means, and for each id the divisor of its segment's weights.

  Args:
    *refs: Scalars, inputs, outputs and scratch memory, in the order of
      `pallas_tpu`. Divisors are the largest score of an id's segment, and the
      sum of the exponentials of the scores less the largest, up to this step;
      one number could not hold both. Scratch memory has the means so far,
      [slots, lanes], and the divisors of the open segment, [heads, 1] each.
  """
  first_ref, last_ref, slot_ref, score_ref = refs[:4]
  expand_ref, out_ref, norm_ref, sum_ref, largest_ref, total_ref = refs[5:]
  row, step = pl.program_id(0), pl.program_id(2)

  @pl.when(step == 0)
  def _() -> None:
    sum_ref[...] = jnp.zeros_like(sum_ref)
    largest_ref[...] = jnp.full_like(largest_ref, NOTHING)
    total_ref[...] = jnp.zeros_like(total_ref)

  heads, ids = score_ref.shape
  blocks = ids // BLOCK
  score = score_ref[...]
  slot = jnp.broadcast_to(slot_ref[...], (heads, ids))
  before, after = _neighbours(slot)
  previous = last_ref[row, jnp.maximum(step * blocks - 1, 0)]
  is_open = (slot == previous) & (step > 0)
  largest = _last_of_all(_running(score, before, jnp.maximum), after)
  largest = jnp.where(is_open, jnp.maximum(largest, largest_ref[...]), largest)
  weight = jnp.where(score > NOTHING / 2, jnp.exp(score - largest), 0.0)
  total = _last_of_all(_running(weight, before, jnp.add), after)
  carried = total_ref[...] * jnp.exp(largest_ref[...] - largest)
  total = jnp.where(is_open, total + carried, total)
  safe_total = jnp.where(total > 0, total, 1.0)
  share = weight / safe_total
  norm_ref[0], norm_ref[1] = largest, safe_total

  @pl.when((first_ref[row, step * blocks] == previous) & (step > 0))
  def _() -> None:
    kept = (carried / safe_total)[:, :1] * expand_ref[...].astype(jnp.float32)
    open_row = pl.ds(previous, 1)
    sum_ref[open_row] = sum_ref[open_row] * jnp.sum(kept, 0, keepdims=True)

  largest_ref[...] = largest[:, -1:]
  total_ref[...] = total[:, -1:]

  def add(block: int, number: int | Array) -> None:
    _add_block(share, row, step * blocks, block, number, *refs)

  for block in range(blocks):
    add(block, 0)

  @pl.when(is_wide(first_ref, last_ref, row, step, blocks, sum_ref))
  def _() -> None:
    for block in range(blocks):
      index = step * blocks + block
      count = _num_windows(first_ref, last_ref, row, index, sum_ref)
      lax.fori_loop(1, count, lambda n, _, block=block: add(block, n), None)

  @pl.when(step == pl.num_programs(2) - 1)
  def _() -> None:
    out_ref[...] = sum_ref[: out_ref.shape[0]].astype(out_ref.dtype)


def _add_block(
  share: Array,
  row: Array,
  start: Array,
  block: int,
  number: int | Array,
  *refs: Ref,
) -> None:
  """Adds the weighted values of a block of ids to one window of slots.

  Args:
    share: Weights of the ids of the step, [heads, ids] float32.
    row: Row of the batch.
    start: Number of the first block of the step.
    block: Number of the block in the step.
    number: Number of the window.
    *refs: Those of `forward`.
  """
  first_ref, slot_ref, value_ref, expand_ref, sum_ref = (
    refs[i] for i in (0, 2, 4, 5, 8)
  )
  lanes = pl.ds(block * BLOCK, BLOCK)
  hot, window = _window(
    slot_ref[:, lanes], first_ref[row, start + block], number, sum_ref
  )
  dtype = value_ref.dtype
  share = share[:, block * BLOCK : (block + 1) * BLOCK]
  weight = dot(share.astype(dtype), expand_ref[...], FIRST)
  # A value of weight 0 is not read: it may be NaN.
  value = jnp.where(
    weight != 0, weight * value_ref[lanes].astype(jnp.float32), 0.0
  )
  sum_ref[window] += dot(hot.astype(dtype), value.astype(dtype), COLUMNS)


def backward(*refs: Ref) -> None:
  """Writes the gradients; steps go from the last ids to the first.

  Args:
    *refs: Scalars, inputs, outputs and scratch memory, in the order of
      `pallas_tpu`. Scores and divisors are those of all queries. For a segment
      over several steps, the divisors at its last ids count for all of it;
      scratch memory has those of the open segment, [Q, 2, heads, 1] float32.
  """
  first_ref, last_ref, slot_ref, score_ref, value_ref, expand_ref, *rest = refs
  norm_ref, delta_ref, *grad_refs, grad_score_ref, grad_value_ref, carry_ref = (
    rest
  )
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

  def of_window(block: int, q: int, number: int | Array) -> tuple[Array, Array]:
    """Returns gradient and delta of each id's slot; 0 outside the window."""
    lanes = pl.ds(block * BLOCK, BLOCK)
    first = first_ref[row, step * blocks + block]
    hot, window = _window(slot_ref[:, lanes], first, number, grad_refs[q])
    grad = dot(hot.astype(dtype), grad_refs[q][window], FIRST)
    delta = dot(delta_ref[q, window], hot.astype(jnp.float32), FIRST)
    return grad, delta

  def of_all_windows(block: int, q: int) -> tuple[Array, Array]:
    index = step * blocks + block
    count = _num_windows(first_ref, last_ref, row, index, grad_refs[q])
    return lax.fori_loop(
      1,
      count,
      lambda n, x: jax.tree.map(jnp.add, x, of_window(block, q, n)),
      of_window(block, q, 0),
    )

  write = functools.partial(
    _write_gradients,
    shares,
    value_ref,
    expand_ref[...],
    grad_score_ref,
    grad_value_ref,
  )
  write(functools.partial(of_window, number=0))

  @pl.when(is_wide(first_ref, last_ref, row, step, blocks, grad_refs[0]))
  def _() -> None:
    write(of_all_windows)


def _write_gradients(
  shares: Sequence[Array],
  value_ref: Ref,
  expand: Array,
  grad_score_ref: Ref,
  grad_value_ref: Ref,
  gather: Callable[[int, int], tuple[Array, Array]],
) -> None:
  """Writes gradients from the weights of each query, [heads, ids] float32.

  `gather` is a function from a block and a query to the gradient of the output
  in the slot of each id, [BLOCK, lanes], and to its delta, [heads, BLOCK].
  """
  dtype = value_ref.dtype
  for block in range(value_ref.shape[0] // BLOCK):
    lanes = pl.ds(block * BLOCK, BLOCK)
    static = slice(block * BLOCK, (block + 1) * BLOCK)
    value = value_ref[lanes].astype(jnp.float32)
    grad_value = jnp.zeros_like(value)
    for q, share in enumerate(shares):
      grad, delta = gather(block, q)
      share = share[:, static]
      grad_value += dot(share.astype(dtype), expand, FIRST) * grad
      slope = _sum_of_heads(grad * value, expand) - delta
      grad_score_ref[q, :, lanes] = jnp.where(share > 0, share * slope, 0.0)
    grad_value_ref[lanes] = grad_value.astype(dtype)


def _sum_of_heads(x: Array, expand: Array) -> Array:
  """Sums the lanes of each head: [ids, lanes] float32 to [heads, ids]."""
  if expand.dtype == jnp.float32:
    return dot(expand, x, ROWS)
  # Two numbers of bfloat16 hold 16 bits of each factor.
  high = x.astype(expand.dtype)
  low = (x - high.astype(jnp.float32)).astype(expand.dtype)
  return dot(expand, high, ROWS) + dot(expand, low, ROWS)


def _window(
  slot: Array, first: Array, number: int | Array, slots_ref: Ref
) -> tuple[Array, pl.Slice | slice]:
  """Finds the slots of the ids of a block in a window of slots.

  Args:
    slot: Slots of the ids, [1, BLOCK] int32.
    first: The smallest of them.
    number: Number of the window, from 0; windows follow each other.
    slots_ref: Array that has a window of slots, [slots, ...].

  Returns:
    True where a row of the window is the slot of an id, [window, BLOCK] bool,
    and the rows of the window. A window that would reach beyond the end is
    moved; it then has only the slots that no window before it had.
  """
  size, total = _window_size(slots_ref), slots_ref.shape[0]
  begin = first // ALIGNMENT * ALIGNMENT + number * size
  start = pl.multiple_of(jnp.minimum(begin, total - size), ALIGNMENT)
  here = jnp.where(slot >= begin, slot - start, -1)
  hot = lax.broadcasted_iota(jnp.int32, (size, slot.shape[1]), 0) == here
  return hot, pl.ds(start, size)


def _window_size(slots_ref: Ref) -> int:
  """Returns the slots of a window: those of a block, wherever they begin."""
  return min(BLOCK + ALIGNMENT, slots_ref.shape[0])


def _num_windows(
  first_ref: Ref, last_ref: Ref, row: Array, index: Array, slots_ref: Ref
) -> Array:
  """Returns the number of windows that a block of ids reaches."""
  begin = first_ref[row, index] // ALIGNMENT * ALIGNMENT
  return (last_ref[row, index] - begin) // _window_size(slots_ref) + 1


def is_wide(
  first_ref: Ref,
  last_ref: Ref,
  row: Array,
  step: Array,
  blocks: int,
  slots_ref: Ref,
) -> Array:
  """Returns whether any block of a step needs more than one window."""
  counts = [
    _num_windows(first_ref, last_ref, row, step * blocks + block, slots_ref)
    for block in range(blocks)
  ]
  return functools.reduce(jnp.maximum, counts) > 1


def _neighbours(slot: Array) -> tuple[list[Array], list[Array]]:
  """Returns which ids have the slot of the id 1, 2, 4, ... lanes apart.

  The first list compares with the id before, the second with the id after.
  """
  ids = slot.shape[1]
  lane = lax.broadcasted_iota(jnp.int32, slot.shape, 1)
  before, after = [], []
  shift = 1
  while shift < ids:
    before.append((pltpu.roll(slot, shift, 1) == slot) & (lane >= shift))
    after.append(
      (pltpu.roll(slot, ids - shift, 1) == slot) & (lane < ids - shift)
    )
    shift *= 2
  return before, after


def _running(
  x: Array, before: Sequence[Array], join: Callable[[Array, Array], Array]
) -> Array:
  """Joins each number with all before it in its segment."""
  for i, is_same in enumerate(before):
    x = jnp.where(is_same, join(x, pltpu.roll(x, 1 << i, 1)), x)
  return x


def _last_of_all(x: Array, after: Sequence[Array]) -> Array:
  """Spreads the last number of each segment over it; they must not decrease."""
  for i, is_same in enumerate(after):
    shifted = pltpu.roll(x, x.shape[1] - (1 << i), 1)
    x = jnp.where(is_same, jnp.maximum(x, shifted), x)
  return x
