import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import sampling
from abstractinator.ops.sampling import Draws, Filters
from tests.helpers.jitted import jit

ROWS, IDS = 8, 13
NO_FILTERS = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
SETTINGS = [
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
]


def filters_of(settings):
  """Returns filters of all rows, as Python numbers."""
  return Filters(*(NO_FILTERS | settings).values())


def filters_of_rows(settings):
  """Returns filters that are arrays, one entry per row."""
  columns = zip(*((NO_FILTERS | x).values() for x in settings), strict=True)
  dtypes = (jnp.float32, jnp.int32, jnp.float32, jnp.float32)
  return Filters(*map(jnp.asarray, columns, dtypes))


def make_draws(settings, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(settings))
  return Draws(keys, filters_of_rows(settings))


def softmax(x):
  p = np.exp(x - x.max())
  return p / p.sum()


def kept_by_hand(logits, temperature, top_k, top_p, min_p):
  """Follows the docstring of `Filters` for one row, id by id."""
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


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_filters_keep_what_their_docstring_says(settings):
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(30, 40))
  # Equal ids at the edge of a filter.
  logits[::3] = np.round(logits[::3])
  logits = jnp.asarray(logits, jnp.float32)
  got = np.asarray(sampling.filter_logits(logits, filters_of(settings)))
  assert got.dtype == np.float32
  settings = NO_FILTERS | settings
  for row, given in zip(got, np.asarray(logits), strict=True):
    kept = np.isfinite(row)
    assert set(np.nonzero(kept)[0]) == kept_by_hand(given, **settings)
    np.testing.assert_allclose(
      row[kept] - row.max(),
      (given[kept] - given.max()) / (settings['temperature'] or 1.0),
      rtol=1e-5,
      atol=1e-5,
    )
    assert np.isneginf(row[~kept]).all()


def test_each_row_is_filtered_as_alone():
  """Filters that are arrays do what Python numbers do, of any shape."""
  shape = (len(SETTINGS), 40)
  logits = 2 * jax.random.normal(jax.random.key(0), shape)
  rows = jit(sampling.filter_logits)(logits, filters_of_rows(SETTINGS))
  for settings, got, row in zip(SETTINGS, rows, logits, strict=True):
    alone = sampling.filter_logits(row[None, None], filters_of(settings))[0, 0]
    # They are equal up to a constant.
    want, got = np.asarray(alone - alone.max()), np.asarray(got - got.max())
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_filters_that_are_off_cost_nothing():
  logits = jnp.zeros((3, 5))
  filtered = jax.make_jaxpr(
    lambda x: sampling.filter_logits(x, filters_of({}))
  )(logits)
  assert not filtered.eqns
  compiled = jit(sampling.filter_logits, filters=filters_of({'min_p': 0.1}))
  assert 'sort' not in compiled.lower(logits).compile().as_text()


def test_filters_keep_exactly_as_many_of_equal_ids():
  logits = jnp.zeros((2, 10))

  def count(**settings):
    kept = sampling.filter_logits(logits, filters_of(settings))
    return jnp.isfinite(kept)

  assert int(count(top_k=4).sum()) == 8
  # 0.1 + 0.1 + 0.1 is not above 0.35, with a fourth it is.
  np.testing.assert_array_equal(count(top_p=0.35)[0], np.arange(10) < 4)
  np.testing.assert_array_equal(count(temperature=0.0)[0], np.arange(10) < 1)


def test_a_draw_does_not_depend_on_the_rows_beside_it():
  logits = 2 * jax.random.normal(jax.random.key(0), (ROWS, IDS))
  draws = make_draws(SETTINGS[:ROWS]).fold(3)
  draw = jit(sampling.draw_ids)
  ids = draw(draws, logits)
  for row in (0, 2, 7):
    alone = jax.tree.map(lambda x, row=row: x[row : row + 1], draws)
    assert draw(alone, logits[row : row + 1])[0] == ids[row]
  # Rows with a temperature of 0, and with a top_k of 1.
  best = jnp.argmax(logits, axis=1)
  for row in (2, 3):
    assert ids[row] == best[row]


def test_draws_have_the_frequencies_of_the_filtered_probabilities():
  """Errors of 4,000 draws are below 4 standard deviations."""
  count = 4000
  settings = {'temperature': 0.5, 'top_k': 8}
  draws = make_draws([settings] * count)
  logits = 2 * jax.random.normal(jax.random.key(0), (IDS,))
  rows = jnp.broadcast_to(logits, (count, IDS))
  ids = jit(sampling.draw_ids)(draws, rows)
  assert ids.dtype == jnp.int32
  kept = sorted(kept_by_hand(logits, **NO_FILTERS | settings))
  assert len(kept) == 8
  want = np.zeros(IDS)
  want[kept] = softmax(2 * np.asarray(logits, np.float64)[kept])
  error = np.bincount(ids, minlength=IDS) / count - want
  assert (np.abs(error) <= 4 * np.sqrt(want * (1 - want) / count)).all()
  yes = float(jax.nn.sigmoid(-0.8))
  odds = jnp.full((count,), -0.4)
  share = float(np.mean(jit(sampling.draw_bools)(draws, odds)))
  assert abs(share - yes) <= 4 * np.sqrt(yes * (1 - yes) / count)
  # Other numbers give independent draws.
  again = jit(sampling.draw_ids)(draws.fold(1), rows)
  same = np.square(want).sum()
  assert abs(np.mean(again == ids) - same) <= 4 * np.sqrt(same / count)


def test_yes_or_no_at_temperature_zero_is_the_likelier():
  draws = make_draws([{'temperature': 0.0}] * 3)
  got = sampling.draw_bools(draws, jnp.asarray([-0.1, 0.1, 5.0]))
  assert got.tolist() == [False, True, True]


@pytest.mark.parametrize('shape', [(1,), (300,), (7, 5, 259)])
def test_the_likeliest_id_is_that_of_argmax(shape):
  # Few values: the first of many that are largest.
  logits = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
  found = sampling.likeliest(jnp.asarray(logits))
  np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))
  assert found.dtype == jnp.int32


def test_the_likeliest_id_is_none_of_those_that_cannot_occur():
  logits = jnp.array([[-np.inf, -2.0, -np.inf], [-np.inf, -np.inf, -np.inf]])
  np.testing.assert_array_equal(sampling.likeliest(logits), [1, 0])
  assert sampling.likeliest(jnp.array([1.0, np.nan, -np.inf])) == 0


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
