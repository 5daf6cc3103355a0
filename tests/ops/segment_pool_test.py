import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops.segment_pool import (
  pallas_tpu,
  pallas_triton,
  segment_pool,
)
from abstractinator.ops.segment_pool.api import IMPLEMENTATIONS
from tests.helpers.jitted import jit
from tests.helpers.lowering import lowered
from tests.ops.conftest import TOLERANCES, assert_close

ALL = [
  'reference',
  'xla',
  'pallas_interpret',
  'pallas_triton',
]
FAST = ALL[1:]
# On GPU some add up in any order.
SAME_TWICE = [
  name
  for name in ALL
  if jax.default_backend() != 'gpu'
  or 'gpu' in IMPLEMENTATIONS[name].is_reproducible_on
]
SIZE, SLOTS, HEADS, WIDTH = 301, 400, 2, 3
# Steps of 128 ids: segments continue from one to the next, and compilation is
# short.
AS_RUN: dict[str, Any] = {
  'pallas_interpret': functools.partial(
    pallas_tpu.segment_pool, interpret=True, step_blocks=1
  )
}
if jax.default_backend() != 'gpu':
  AS_RUN['pallas_triton'] = functools.partial(
    pallas_triton.segment_pool, interpret=True
  )


def make_index():
  """Returns rows of ids that are hard in some way."""
  rng = np.random.default_rng(0)
  plain = np.cumsum(rng.random(SIZE) < 0.2)
  rows = {
    'plain': plain,
    'every id one': np.arange(SIZE),
    'padded': np.where(np.arange(SIZE) < 170, plain, -1),
    'only padding': np.full(SIZE, -1),
    'one over all blocks': np.zeros(SIZE, int),
    'long among short': np.clip(plain, 9, None) - 9,
    'holes': np.where(rng.random(SIZE) < 0.3, -1, plain),
    'begins with holes': np.where(np.arange(SIZE) < 140, -1, plain),
    # More slots apart in a block than a product with it has.
    'gaps': np.sort(rng.integers(0, SLOTS, SIZE)),
    'gaps at the end': np.where(np.arange(SIZE) < 130, 0, SLOTS - 1),
    'slots short': 2 * np.arange(SIZE),
    'decreasing': np.where(np.arange(SIZE) % 50 == 49, plain - 2, plain),
  }
  return np.stack(list(rows.values())).astype(np.int32)


INDEX = make_index()
ROWS = len(INDEX)


def make_inputs(queries=1, seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(ROWS, SIZE, queries, HEADS)),
    rng.normal(size=(ROWS, SIZE, HEADS, WIDTH)),
  )


@functools.cache
def value_and_pullback(implementation):
  """Returns a compiled function of scores, values, indices and gradients."""
  by = AS_RUN.get(implementation, implementation)

  def both(score, value, index, grad):
    out, pullback = jax.vjp(
      lambda *x: segment_pool(*x, index, num_slots=SLOTS, implementation=by),
      score,
      value,
    )
    return out, *pullback(grad.astype(out.dtype))

  return jit(both)


def compute(implementation, score, value, dtype='float32', index=INDEX):
  shape = (ROWS, SLOTS, score.shape[2], HEADS, WIDTH)
  grad = np.random.default_rng(11).normal(size=shape)
  score, value = (jnp.asarray(x, dtype) for x in (score, value))
  if implementation == 'reference':
    score, value = score.astype(jnp.float32), value.astype(jnp.float32)
  grad = jnp.asarray(grad, 'bfloat16')
  return value_and_pullback(implementation)(score, value, index, grad)


@pytest.mark.parametrize('implementation', FAST)
@pytest.mark.parametrize(
  ('queries', 'dtype'),
  [
    # The test below has one query.
    pytest.param(1, 'float32', marks=pytest.mark.nightly),
    (2, 'float32'),
    (2, 'bfloat16'),
  ],
)
def test_agrees_with_the_reference(implementation, queries, dtype):
  args = make_inputs(queries)
  got = compute(implementation, *args, dtype)
  want = compute('reference', *args, dtype)
  for a, b, tolerance, name in zip(
    got, want, TOLERANCES[dtype] + TOLERANCES[dtype][1:], NAMES, strict=True
  ):
    assert a.dtype == jnp.dtype(dtype)
    assert_close(a, b, tolerance, name)


NAMES = ('value', 'gradient of the scores', 'gradient of the values')


@pytest.mark.parametrize('implementation', FAST)
@pytest.mark.parametrize('shift', [0.0, 1e4])
def test_agrees_with_the_reference_at_large_scores(implementation, shift):
  score, value = make_inputs()
  args = 20 * score + shift, value
  got, want = compute(implementation, *args), compute('reference', *args)
  for a, b, tolerance, name in zip(
    got, want, (2e-6, 1e-5, 1e-5), NAMES, strict=True
  ):
    assert_close(a, b, tolerance, name)


@pytest.mark.parametrize('implementation', FAST)
def test_the_gradient_is_the_slope(implementation):
  """Along random directions, for scores and for values."""
  score, value = make_inputs(queries=2)
  rng = np.random.default_rng(5)
  grads = compute(implementation, score, value)[1:]
  shape = (ROWS, SLOTS, 2, HEADS, WIDTH)
  weight = np.random.default_rng(11).normal(size=shape)
  weight = np.asarray(jnp.asarray(weight, 'bfloat16'), np.float64)

  def loss(score, value):
    out = compute(implementation, score, value)[0]
    return np.sum(weight * np.asarray(out, np.float64))

  for which, step in ((0, 1e-2), (1, 1e-1)):
    args = [score, value]
    direction = rng.normal(size=args[which].shape)
    args[which] = args[which] + step * direction
    above = loss(*args)
    args[which] = args[which] - 2 * step * direction
    slope = (above - loss(*args)) / (2 * step)
    expected = np.sum(direction * np.asarray(grads[which], np.float64))
    np.testing.assert_allclose(slope, expected, rtol=2e-3)


@pytest.mark.parametrize('implementation', ALL)
def test_a_slot_is_the_mean_of_its_segment_weighted_by_softmax(implementation):
  """The second query weighs ids the other way round."""
  score, value = np.zeros((ROWS, SIZE, 2, HEADS)), np.zeros((ROWS, SIZE, 2, 3))
  given = np.log([1.0, 3.0, 5.0, 1.0, 1.0, 2.0, 9.0])
  score[0, :7, 0], score[0, :7, 1] = given[:, None], -given[:, None]
  value[0, :7] = np.reshape([4.0, 8.0, 7.0, 1.0, 2.0, 6.0, 9.0], (7, 1, 1))
  index = np.full_like(INDEX, -1)
  index[0, :7] = [0, 0, 1, 3, 3, 3, -1]
  out = compute(implementation, score, value, index=index)[0]
  np.testing.assert_allclose(
    out[0, :5, :, 0, 0],
    [[7.0, 5.0], [7.0, 7.0], [0.0, 0.0], [3.75, 2.4], [0.0, 0.0]],
    rtol=1e-6,
  )
  np.testing.assert_array_equal(out[1:], 0)


@pytest.mark.parametrize('implementation', ALL)
def test_ids_without_slot_are_not_read_and_get_zero_gradients(implementation):
  is_out = (INDEX < 0) | (INDEX >= SLOTS)
  is_out |= np.maximum.accumulate(INDEX, axis=1) > INDEX
  score, value = make_inputs(2)
  before = compute(implementation, score, value)
  for grad in before[1:]:
    np.testing.assert_array_equal(grad[is_out], 0)
    assert np.abs(np.asarray(grad)[~is_out]).max() > 0
  # NaN must not be read either, except by the oracle, which adds 0 x NaN.
  score[is_out] += 50.0
  value[is_out] += 50.0 if implementation == 'reference' else np.nan
  after = compute(implementation, score, value)
  tolerance = 0.0 if implementation in SAME_TWICE else 1e-5
  for a, b in zip(before, after, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize('implementation', SAME_TWICE)
def test_gives_the_same_twice_and_whatever_stands_in_other_rows(implementation):
  args = make_inputs()
  first, second = (compute(implementation, *args) for _ in range(2))
  other = make_inputs(seed=1)
  other = [
    np.concatenate([x[:4], y[4:]]) for x, y in zip(args, other, strict=True)
  ]
  third = compute(implementation, *other)
  for a, b, c in zip(first, second, third, strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a[:4], c[:4])


@pytest.mark.nightly
def test_groups_of_heads_give_the_same():
  """If memory is short, groups of heads take turns."""
  rng = np.random.default_rng(0)
  score = jnp.asarray(rng.normal(size=(1, 200, 2, 4)), jnp.float32)
  value = jnp.asarray(rng.normal(size=(1, 200, 4, 64)), jnp.float32)
  index = jnp.asarray(np.arange(200) // 3, jnp.int32)[None]

  def tiling(max_bytes):
    return pallas_tpu.make_tiling(
      (200, 2, 4, 64, 70), 4, step_blocks=1, max_bytes=max_bytes, interpret=True
    )

  def both(score, value, max_bytes):
    by = functools.partial(AS_RUN['pallas_interpret'], max_bytes=max_bytes)
    out, pullback = jax.vjp(
      lambda *x: segment_pool(*x, index, num_slots=70, implementation=by),
      score,
      value,
    )
    return out, *pullback(jnp.cos(out))

  whole = tiling(1 << 30)
  assert (whole.groups, whole.lanes) == (1, 256)
  short = whole.memory_bytes - 1
  assert tiling(short).groups == 2
  found = jit(both, max_bytes=short)(score, value)
  for a, b in zip(
    jit(both, max_bytes=1 << 30)(score, value), found, strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-6)
  with pytest.raises(ValueError, match=r'70 slots and 2 queries of 4 heads'):
    both(score, value, 1000)


@pytest.mark.parametrize(
  'implementation',
  ['xla', pytest.param('pallas_interpret', marks=pytest.mark.nightly)],
)
def test_eight_devices_give_what_one_does(implementation):
  """Rows over two axes, heads over the third."""
  rng = np.random.default_rng(0)
  score = jnp.asarray(rng.normal(size=(4, 140, 1, 2)), jnp.float32)
  value = jnp.asarray(rng.normal(size=(4, 140, 2, 4)), jnp.float32)
  index = np.cumsum(rng.random((4, 140)) < 0.3, axis=1).astype(np.int32)
  by = AS_RUN.get(implementation, implementation)

  def both(score, value):
    out, pullback = jax.vjp(
      lambda *x: segment_pool(*x, index, num_slots=40, implementation=by),
      score,
      value,
    )
    return out, *pullback(jnp.cos(out))

  alone = jit(both)(score, value)
  mesh = jax.make_mesh(
    (2, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  with jax.set_mesh(mesh):
    split = jit(both)(score, value)
  assert {x.sharding.shard_shape(x.shape)[0] for x in split} == {1}
  assert split[0].sharding.shard_shape(split[0].shape)[3] == 1
  for a, b in zip(alone, split, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
  ('implementation', 'platform'),
  [
    ('pallas_tpu', 'tpu'),
    ('pallas_triton', 'cuda'),
    ('xla', 'tpu'),
    ('xla', 'cuda'),
  ],
)
def test_lowers_without_the_device(implementation, platform):
  """Lowers 8 heads of 64, forward and backward."""
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)

  def loss(score, value, index):
    out = segment_pool(
      score, value, index, num_slots=128, implementation=implementation
    )
    return out.astype(jnp.float32).sum()

  text = lowered(
    jax.grad(loss, (0, 1)),
    shape((2, 1024, 1, 8)),
    shape((2, 1024, 8, 64)),
    jax.ShapeDtypeStruct((2, 1024), jnp.int32),
    platform=platform,
  )
  kernels = {'pallas_tpu': 2}.get(implementation, 0)
  assert text.count('@tpu_custom_call') == kernels
  kernels = {'pallas_triton': 1}.get(implementation, 0)
  assert text.count('@__gpu$xla.gpu.triton') == kernels
  # Only reductions over segments scatter.
  scatters = {'xla': 3}.get(implementation, 0)
  assert text.count('"stablehlo.scatter"') == scatters


def test_errors_name_what_is_allowed():
  score, value = jnp.zeros((1, 4, 1, 2)), jnp.zeros((1, 4, 2, 3))
  index = jnp.zeros((1, 4), jnp.int32)

  def pool(value, num_slots, implementation):
    return segment_pool(
      score, value, index, num_slots=num_slots, implementation=implementation
    )

  with pytest.raises(ValueError, match=r"'sort'.*reference, xla, "):
    pool(value, 4, 'sort')
  with pytest.raises(ValueError, match=r'num_slots: got 0, allowed: >= 1'):
    pool(value, 0, 'xla')
  with pytest.raises(NotImplementedError, match=r'float16.*float32, bfloat16'):
    pool(value.astype(jnp.float16), 4, 'pallas_tpu')
  with pytest.raises(NotImplementedError, match=r'got heads 264 wide, .* 256'):
    segment_pool(
      score,
      jnp.zeros((1, 4, 2, 264)),
      index,
      num_slots=4,
      implementation='pallas_triton',
    )
