"""Sums over sorted segments in an order that does not depend on the device."""

import jax.numpy as jnp
from jax import lax

from abstractinator.types import Array

_BLOCK = 64


def blocked_sum(x_NX: Array, bucket_N: Array, num_buckets: int) -> Array:
  """Adds up the rows of each bucket without a scatter.

  Blocks of rows are summed by a product with the matrix of what belongs
  together; a bucket over several blocks takes the sums of the earlier ones
  along, and stands complete in its last row.

  Args:
    x_NX: [N, ...] float32.
    bucket_N: [N] int32 in 0..num_buckets-1, not decreasing.
    num_buckets: How many.

  Returns:
    [num_buckets, ...] float32, zeros where no row belongs.
  """
  count, shape = len(x_NX), x_NX.shape[1:]
  x_NX = x_NX.reshape(count, -1)
  pad = -count % _BLOCK
  x = jnp.pad(x_NX, ((0, pad), (0, 0))).reshape(-1, _BLOCK, x_NX.shape[1])
  # What is added at the end belongs to the last bucket, and is zero.
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
  """What the bucket that a block begins with has from the blocks before."""

  def join(a, b):
    (begins_a, a), (begins_b, b) = a, b
    return begins_a | begins_b, b + jnp.where(begins_b, 0.0, a)

  # A block begins anew if its last bucket has no row before it.
  begins = first_bucket != last_bucket
  before = jnp.concatenate([last_bucket[:1] - 1, last_bucket[:-1]])
  begins |= first_bucket != before
  sums = lax.associative_scan(join, (begins[:, None], last))[1]
  sums = jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]])
  return jnp.where((first_bucket == before)[:, None], sums, 0.0)
