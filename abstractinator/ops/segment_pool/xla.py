"""Pooling by sums over sorted segments; the backward pass only gathers."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array

# Ids whose sums are one product.
_BLOCK = 64


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  *,
  num_slots: int,
  is_deterministic: bool = False,
) -> Array:
  """Pools like `reference.segment_pool`, one query after the other.

  Values are never repeated for each query. With `is_deterministic` sums are
  matrix products, the same from run to run; else XLA adds floats on GPU in any
  order.
  """
  return _pool(
    num_slots, is_deterministic, score_BSQH, value_BSHE, slot_BS, has_slot_BS
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool(num_slots, is_deterministic, *args):
  return _forward(num_slots, is_deterministic, *args)[0]


def _forward(
  num_slots, is_deterministic, score_BSQH, value_BSHE, slot_BS, has_slot_BS
):
  batch, _, queries, heads = score_BSQH.shape
  bucket_N = buckets(slot_BS, num_slots)
  num_buckets = batch * num_slots
  has_slot_N = has_slot_BS.reshape(-1)[:, None, None]
  segment_sum = functools.partial(jax.ops.segment_sum, indices_are_sorted=True)

  def sums(x_NX):
    add = _blocked_sum if is_deterministic else segment_sum
    return add(x_NX, bucket_N, num_buckets)

  score_NQH = score_BSQH.astype(jnp.float32).reshape(-1, queries, heads)
  score_NQH = jnp.where(has_slot_N, score_NQH, -jnp.inf)
  largest = jax.ops.segment_max(
    score_NQH, bucket_N, num_buckets, indices_are_sorted=True
  )
  weight_NQH = jnp.exp(score_NQH - largest[bucket_N])
  weight_NQH = jnp.where(has_slot_N, weight_NQH, 0.0)
  total_NQH = sums(weight_NQH)[bucket_N]
  weight_NQH /= jnp.where(total_NQH > 0, total_NQH, 1.0)
  value_NHE = value_BSHE.astype(jnp.float32).reshape(
    -1, heads, value_BSHE.shape[-1]
  )
  value_NHE = jnp.where(has_slot_N, value_NHE, 0.0)
  out = jnp.stack(
    [sums(weight_NQH[:, q, :, None] * value_NHE) for q in range(queries)],
    axis=1,
  )
  out_BPQHE = out.reshape(batch, num_slots, *out.shape[1:])
  out_BPQHE = out_BPQHE.astype(value_BSHE.dtype)
  return out_BPQHE, (weight_NQH, score_BSQH, value_BSHE, slot_BS, out_BPQHE)


def _backward(num_slots, is_deterministic, saved, grad_BPQHE):
  del num_slots, is_deterministic  # Nothing is added up here.
  weight_NQH, score_BSQH, value_BSHE, slot_BS, out_BPQHE = saved
  grads = gradients(
    weight_NQH, score_BSQH, value_BSHE, slot_BS, out_BPQHE, grad_BPQHE
  )
  return *grads, None, None


_pool.defvjp(_forward, _backward)


def buckets(slot_BS: Array, num_slots: int) -> Array:
  """Returns the slot of each id in the flattened batch, not decreasing, [N]."""
  row_B = jnp.arange(slot_BS.shape[0], dtype=jnp.int32)
  return (slot_BS + row_B[:, None] * num_slots).reshape(-1)


def gradients(
  weight_NQH: Array,
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  out_BPQHE: Array,
  grad_BPQHE: Array,
) -> tuple[Array, Array]:
  """Computes gradients of pooling: each id gathers from its own slot.

  With w the weights and o the outputs, d value = sum over queries of
  w grad[slot], and d score = w grad[slot] . (value - o[slot]).

  Args:
    weight_NQH: Weights, [N, Q, H] float32, 0 without a slot; N is B x S.
    score_BSQH: Scores, [B, S, Q, H].
    value_BSHE: Values, [B, S, H, E].
    slot_BS: Slots, [B, S] int32 in 0..P-1.
    out_BPQHE: Outputs of pooling, [B, P, Q, H, E].
    grad_BPQHE: Gradients of the outputs, [B, P, Q, H, E].

  Returns:
    Gradients of the scores and of the values, of their shapes and types.
  """
  bucket_N = buckets(slot_BS, out_BPQHE.shape[1])

  def at_own_slot(x_BPHE: Array) -> Array:  # [N, H, E]
    x = x_BPHE.astype(jnp.float32).reshape(-1, *x_BPHE.shape[2:])
    return x[bucket_N]

  # Rows are one here: XLA on CPU would give all of a row to one thread.
  value = value_BSHE.astype(jnp.float32)
  value_NHE = value.reshape(-1, *value_BSHE.shape[2:])
  grad_score: list[Array] = []
  grad_value = jnp.zeros_like(value_NHE)
  for q in range(score_BSQH.shape[2]):
    weight_NH, grad_NHE = weight_NQH[:, q], at_own_slot(grad_BPQHE[:, :, q])
    deviation_NHE = value_NHE - at_own_slot(out_BPQHE[:, :, q])
    grad_NH = weight_NH * jnp.sum(grad_NHE * deviation_NHE, -1)
    grad_score.append(jnp.where(weight_NH > 0, grad_NH, 0.0))
    grad_value += weight_NH[..., None] * grad_NHE
  grad_score_NQH = jnp.stack(grad_score, axis=1)
  return (
    grad_score_NQH.reshape(score_BSQH.shape).astype(score_BSQH.dtype),
    grad_value.reshape(value_BSHE.shape).astype(value_BSHE.dtype),
  )


def _blocked_sum(x_NX: Array, bucket_N: Array, num_buckets: int) -> Array:
  """Adds up the rows of each bucket without a scatter, in a fixed order.

  Blocks of rows are summed by a product with the matrix of rows that have the
  same bucket. A bucket over several blocks carries the sums of the earlier
  blocks along; its last row has the complete sum.

  Args:
    x_NX: Rows of numbers, [N, ...] float32; X is all dimensions but the first.
    bucket_N: Bucket of each row, [N] int32 in 0..num_buckets-1, not decreasing.
    num_buckets: Number of buckets.

  Returns:
    [num_buckets, ...] float32, zeros for buckets without a row.
  """
  count, shape = len(x_NX), x_NX.shape[1:]
  x_NX = x_NX.reshape(count, -1)
  pad = -count % _BLOCK
  x = jnp.pad(x_NX, ((0, pad), (0, 0))).reshape(-1, _BLOCK, x_NX.shape[1])
  # The padding belongs to the last bucket, and is zero.
  bucket = jnp.pad(bucket_N, (0, pad), mode='edge').reshape(-1, _BLOCK)
  row = jnp.arange(_BLOCK)
  adds = (bucket[:, :, None] == bucket[:, None]) & (row[:, None] >= row)
  sums = jnp.einsum(
    'ntu,nux->ntx', adds.astype(jnp.float32), x, precision='highest'
  )
  carry = _carry(sums[:, -1], bucket[:, 0], bucket[:, -1])
  last = jnp.searchsorted(bucket_N, jnp.arange(num_buckets), side='right') - 1
  last = jnp.maximum(last, 0)
  block, row = last // _BLOCK, last % _BLOCK
  is_first = bucket[block, 0] == jnp.arange(num_buckets)
  out = sums[block, row] + jnp.where(is_first[:, None], carry[block], 0.0)
  is_there = bucket_N[last] == jnp.arange(num_buckets)
  return jnp.where(is_there[:, None], out, 0.0).reshape(num_buckets, *shape)


def _carry(last: Array, first_bucket: Array, last_bucket: Array) -> Array:
  """Returns the sum over earlier blocks of the bucket that a block begins with.

  Args:
    last: Sum at the last row of each block, [blocks, X] float32.
    first_bucket: Bucket of the first row of each block, [blocks] int32.
    last_bucket: Bucket of the last row of each block, [blocks] int32.

  Returns:
    [blocks, X] float32.
  """

  def join(a, b):
    (begins_a, a), (begins_b, b) = a, b
    return begins_a | begins_b, b + jnp.where(begins_b, 0.0, a)

  # The sum starts anew in a block whose last bucket has no row before it.
  begins = first_bucket != last_bucket
  before = jnp.concatenate([last_bucket[:1] - 1, last_bucket[:-1]])
  begins |= first_bucket != before
  sums = lax.associative_scan(join, (begins[:, None], last))[1]
  sums = jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]])
  return jnp.where((first_bucket == before)[:, None], sums, 0.0)
