"""Compares means of vectors that come one at a time with means of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import running_pool
from abstractinator.ops.segment_pool import segment_pool

ROWS, SIZE, HEADS, WIDTH = 3, 12, 2, 4


def make_rows(scale=1.0):
  rng = np.random.default_rng(0)
  score = scale * rng.normal(size=(ROWS, SIZE, HEADS))
  value = rng.normal(size=(ROWS, SIZE, HEADS, WIDTH))
  is_start = rng.random((ROWS, SIZE)) < 0.3
  is_start[:, 0] = True
  return jnp.float32(score), jnp.float32(value), is_start


@jax.jit
def one_at_a_time(score, value, is_start):
  """Returns the means [B, S, ...] after each vector, and the last pool."""

  def step(pool, at):
    pool = running_pool.add(pool, *at)
    return pool, running_pool.mean(pool)

  columns = jax.tree.map(
    lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0), (score, value, is_start)
  )
  empty = running_pool.of_rows(score, value, jnp.zeros(is_start.shape, bool))
  pool, means = jax.lax.scan(step, empty, columns)
  return jnp.moveaxis(means, 0, 1), pool


pool_all = jax.jit(
  functools.partial(segment_pool, num_slots=SIZE, implementation='reference')
)


# At the larger scale scores are so far apart that all weights but one vanish.
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_means_so_far_are_those_of_the_segments_so_far(scale):
  score, value, is_start = make_rows(scale)
  means, pool = one_at_a_time(score, value, is_start)
  index = np.cumsum(is_start, axis=1) - 1
  for end in range(SIZE):
    so_far = np.where(np.arange(SIZE) <= end, index, -1)
    want = pool_all(score[:, :, None], value, jnp.int32(so_far))
    want = want[np.arange(ROWS), index[:, end], 0]
    np.testing.assert_allclose(means[:, end], want, atol=1e-6)
  # The pool of the last segments at once is the one that came by steps.
  whole = running_pool.of_rows(score, value, index == index[:, -1:])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    pool,
    whole,
  )


def test_axes_between_rows_and_values_are_free():
  """Several queries have scores of their own, and share the values."""
  score, value, is_start = make_rows()
  both = jnp.stack([score, -2 * score], axis=2)
  means, _ = one_at_a_time(both, value[:, :, None], is_start)
  for query, factor in enumerate((1, -2)):
    want, _ = one_at_a_time(factor * score, value, is_start)
    np.testing.assert_allclose(means[:, :, query], want, atol=1e-6)


def test_the_mean_of_no_vectors_is_zero():
  score, value, is_start = make_rows()
  pool = running_pool.of_rows(score, value, jnp.zeros_like(is_start))
  assert (pool.largest == -jnp.inf).all()
  np.testing.assert_array_equal(running_pool.mean(pool), 0)
