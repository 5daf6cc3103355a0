import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from abstractinator.ops.segment_pool import segment_pool

IMPLEMENTATIONS = ['xla']
HEADS, WIDTH = 2, 3

# Segments of rows of 9 ids, and how many slots there are.
DIVISIONS = {
  'plain': ([[0, 0, 0, 1, 1, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8]], 9),
  'padded': ([[0, 0, 1, 1, 1, -1, -1, -1, -1], [-1] * 9], 4),
  'one segment': ([[0] * 9, [0] * 9], 1),
  'holes': (
    [[0, -1, 0, 1, -1, -1, 1, 2, -1], [-1, 0, 0, -1, 2, 2, -1, 3, 3]],
    5,
  ),
  'slots left': ([[0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]], 7),
  'slots short': (
    [[0, 0, 1, 1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 2, 2, 2, 2, 2]],
    2,
  ),
  'gaps': ([[1, 1, 1, 4, 4, 4, 4, 6, 6], [3, 3, 3, 3, 3, 3, 3, 3, 3]], 7),
}


def make_inputs(size, rows=2, seed=0, queries=1):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(rows, size, queries, HEADS)),
    rng.normal(size=(rows, size, HEADS, WIDTH)),
  )


def at(implementation, index, num_slots):
  return lambda score, value: segment_pool(
    score,
    value,
    jnp.asarray(index, jnp.int32),
    num_slots=num_slots,
    implementation=implementation,
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('queries', [1, 3])
@pytest.mark.parametrize('division', DIVISIONS)
def test_agrees_with_the_reference(
  hold_against, implementation, division, queries, dtype
):
  index, num_slots = DIVISIONS[division]
  hold_against(
    at(implementation, index, num_slots),
    at('reference', index, num_slots),
    make_inputs(9, queries=queries),
    dtype,
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_agrees_with_the_reference_on_long_rows(hold_against, implementation):
  """One segment far longer than the others, slots that run out."""
  rng = np.random.default_rng(2)
  index = np.cumsum(rng.random((3, 301)) < 0.2, axis=1)
  index[1, 40:] = 9
  hold_against(
    at(implementation, index, 40),
    at('reference', index, 40),
    make_inputs(301, rows=3),
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('shift', [0.0, 1e4])
def test_agrees_with_the_reference_at_large_scores(
  hold_against, implementation, shift
):
  index, num_slots = DIVISIONS['plain']
  score, value = make_inputs(9)
  hold_against(
    at(implementation, index, num_slots),
    at('reference', index, num_slots),
    (20 * score + shift, value),
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('queries', [1, 2])
@pytest.mark.parametrize('division', ['padded', 'holes', 'slots short'])
def test_the_gradient_is_the_slope(implementation, division, queries):
  index, num_slots = DIVISIONS[division]
  test_util.check_grads(
    jax.jit(at(implementation, index, num_slots)),
    tuple(jnp.asarray(x, jnp.float32) for x in make_inputs(9, queries=queries)),
    order=1,
    modes=['rev'],
    rtol=1e-2,
    atol=1e-2,
  )


@pytest.mark.parametrize('implementation', ['reference', *IMPLEMENTATIONS])
def test_a_slot_is_the_mean_of_its_segment_weighted_by_softmax(implementation):
  """The second query weighs ids the other way round."""
  score = np.log([[1.0, 3.0, 5.0, 1.0, 1.0, 2.0, 9.0]])
  value = np.array([[4.0, 8.0, 7.0, 1.0, 2.0, 6.0, 9.0]])
  index = [[0, 0, 1, 3, 3, 3, -1]]
  out = at(implementation, index, 5)(
    jnp.asarray(np.stack([score, -score], 2)[..., None], jnp.float32),
    jnp.asarray(value[..., None, None], jnp.float32),
  )
  np.testing.assert_allclose(
    out[0, :, :, 0, 0],
    [[7.0, 5.0], [7.0, 7.0], [0.0, 0.0], [3.75, 2.4], [0.0, 0.0]],
    rtol=1e-6,
  )


@pytest.mark.parametrize('implementation', ['reference', *IMPLEMENTATIONS])
def test_ids_without_slot_are_not_read_and_get_zero_gradients(implementation):
  index = np.array([[0, -1, 0, 1, 2, 2, -1]])
  rng = np.random.default_rng(0)
  score = jnp.asarray(rng.normal(size=(1, 7, 2, HEADS)), jnp.float32)
  value = jnp.asarray(rng.normal(size=(1, 7, HEADS, WIDTH)), jnp.float32)
  pool = jax.jit(at(implementation, index, 2))
  out, pullback = jax.vjp(pool, score, value)
  is_out = (index < 0) | (index >= 2)
  for grad in pullback(jnp.asarray(rng.normal(size=out.shape), jnp.float32)):
    np.testing.assert_array_equal(grad[is_out], 0)
    assert np.abs(grad[~is_out]).max() > 0
  np.testing.assert_array_equal(
    pool(score.at[is_out].add(50.0), value.at[is_out].add(50.0)), out
  )


def test_errors_name_what_is_allowed():
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs(9)]
  index = DIVISIONS['plain'][0]
  with pytest.raises(ValueError, match=r"'sort'.*reference, xla"):
    at('sort', index, 9)(*args)
  with pytest.raises(ValueError, match=r'num_slots: got 0, allowed: >= 1'):
    at('xla', index, 0)(*args)
