import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import sampling

NO_FILTER = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def softmax(x):
  p = np.exp(x - x.max())
  return p / p.sum()


def kept_by_hand(logits, temperature, top_k, top_p, min_p):
  """The docstring of `filter_logits`, one row, one id after the other."""
  x = np.asarray(logits, np.float64) / (temperature or 1)
  order = sorted(range(len(x)), key=lambda i: (-x[i], i))
  order = order[: 1 if temperature == 0 else top_k or len(x)]
  p = softmax(x[order])
  kept, total = [], 0.0
  for i, share in zip(order, p, strict=True):
    if total <= top_p:
      kept.append(i)
    total += share
  return {i for i in kept if x[i] >= x[order[0]] + np.log(max(min_p, 1e-300))}


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'temperature': 0.7},
    {'temperature': 0.0},
    {'top_k': 1},
    {'top_k': 7},
    {'top_k': 99},
    {'top_p': 0.3},
    {'top_p': 1e-6},
    {'top_p': 0.9},
    {'min_p': 0.1},
    {'min_p': 1.0},
    {'temperature': 2.5, 'top_k': 20, 'top_p': 0.8, 'min_p': 0.05},
    {'temperature': 0.0, 'top_k': 9, 'top_p': 0.5},
  ],
  ids=str,
)
def test_filters_keep_what_they_say(settings):
  settings = NO_FILTER | settings
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(30, 40))
  # Equal ids at the edge of a filter.
  logits[::3] = np.round(logits[::3])
  logits = jnp.asarray(logits, jnp.float32)
  got = np.asarray(sampling.filter_logits(logits, **settings))
  for row, given in zip(got, np.asarray(logits), strict=True):
    kept = np.isfinite(row)
    assert set(np.nonzero(kept)[0]) == kept_by_hand(given, **settings)
    temperature = settings['temperature'] or 1.0
    np.testing.assert_allclose(
      row[kept] - row.max(),
      (given[kept] - given.max()) / temperature,
      rtol=1e-5,
      atol=1e-5,
    )
    assert np.isneginf(row[~kept]).all()
  assert got.dtype == np.float32


def test_equal_ids_leave_exactly_as_many():
  logits = jnp.zeros((2, 10))
  assert int(jnp.isfinite(sampling.filter_logits(logits, top_k=4)).sum()) == 8
  # 0.1 + 0.1 + 0.1 is not above 0.35, with a fourth it is.
  kept = jnp.isfinite(sampling.filter_logits(logits, top_p=0.35))
  np.testing.assert_array_equal(kept[0], np.arange(10) < 4)
  greedy = sampling.filter_logits(logits, temperature=0.0)
  np.testing.assert_array_equal(jnp.isfinite(greedy[0]), np.arange(10) < 1)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('temperature', -0.1),
    ('temperature', 1e-7),
    ('top_k', -1),
    ('top_p', 0.0),
    ('top_p', 1.5),
    ('min_p', -0.1),
    ('min_p', 1.1),
  ],
)
def test_a_filter_out_of_range_is_an_error(name, value):
  with pytest.raises(ValueError, match=rf'{name}: got {value}, allowed'):
    sampling.filter_logits(jnp.zeros((3,)), **{name: value})


def test_draws_follow_the_probabilities_that_are_left():
  logits = jnp.log(jnp.array([0.5, 0.2, 0.2, 0.1]))
  filtered = sampling.filter_logits(logits, top_k=3)
  draws = sampling.sample(
    jax.random.key(0), jnp.broadcast_to(filtered, (20_000, 4))
  )
  assert draws.dtype == jnp.int32
  counts = np.bincount(draws, minlength=4) / 20_000
  np.testing.assert_allclose(counts, [5 / 9, 2 / 9, 2 / 9, 0], atol=0.015)


def test_draws_at_temperature_zero_are_the_most_likely_ids():
  logits = jax.random.normal(jax.random.key(1), (500, 30))
  greedy = sampling.filter_logits(logits, temperature=0.0)
  np.testing.assert_array_equal(
    sampling.sample(jax.random.key(2), greedy), jnp.argmax(logits, axis=-1)
  )


def test_entropy_bits_by_hand_and_by_numpy():
  uniform = sampling.entropy_bits(jnp.full((2, 256), 7.0))
  np.testing.assert_allclose(uniform, 8.0, atol=1e-5)
  one_hot = jnp.array([0.0, 1e4, 0.0])
  np.testing.assert_allclose(sampling.entropy_bits(one_hot), 0.0, atol=1e-6)
  halves = sampling.entropy_bits(jnp.array([3e4, 3e4, -3e4]))
  np.testing.assert_allclose(halves, 1.0, atol=1e-6)
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(4, 5, 259))
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(
    sampling.entropy_bits(jnp.asarray(logits, jnp.float32)),
    -(p * np.log2(p)).sum(-1),
    rtol=1e-5,
  )
  rounded = jnp.asarray(logits, jnp.bfloat16)
  bits = sampling.entropy_bits(rounded)
  assert bits.dtype == jnp.float32
  np.testing.assert_array_equal(
    bits, sampling.entropy_bits(rounded.astype(jnp.float32))
  )


def test_excluded_ids_have_no_entropy():
  logits = jnp.array([2.0, 2.0, 2.0, 2.0, -jnp.inf, -jnp.inf])
  np.testing.assert_allclose(sampling.entropy_bits(logits), 2.0, atol=1e-6)
  alone = jnp.array([-jnp.inf, 5.0, -jnp.inf])
  assert float(sampling.entropy_bits(alone)) == 0.0


def test_surprisal_bits_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])) + 3.0
  np.testing.assert_allclose(
    sampling.surprisal_bits(logits, jnp.array([1, 0])), [2.0, 3.0], rtol=1e-6
  )
