import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.ops import sampling
from abstractinator.ops.compact import compact
from abstractinator.ops.draw import (
  Draws,
  Filters,
  draw_bools,
  draw_ids,
  filter_rows,
)
from tests.jitted import jit

ROWS, IDS = 8, 13
SETTINGS = (
  {},
  {'temperature': 0.7},
  {'temperature': 0.0},
  {'top_k': 5},
  {'top_p': 0.4},
  {'min_p': 0.2},
  {'temperature': 0.0, 'top_k': 3, 'top_p': 0.2},
  {'temperature': 2.0, 'top_k': 9, 'top_p': 0.8, 'min_p': 0.05},
)


def make_filters(settings):
  def column(name, default, dtype):
    return jnp.asarray([x.get(name, default) for x in settings], dtype)

  return Filters(
    column('temperature', 1.0, jnp.float32),
    column('top_k', 0, jnp.int32),
    column('top_p', 1.0, jnp.float32),
    column('min_p', 0.0, jnp.float32),
  )


def make_draws(settings, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(settings))
  return Draws(keys, make_filters(settings))


def make_logits(seed=0):
  return 2 * jax.random.normal(jax.random.key(seed), (ROWS, IDS))


def test_rows_are_filtered_as_each_alone():
  logits = make_logits()
  rows = jax.jit(filter_rows)(make_filters(SETTINGS), logits)
  for settings, got, row in zip(SETTINGS, rows, logits, strict=True):
    alone = sampling.filter_logits(row, **settings)
    # Up to a constant.
    want, got = np.asarray(alone - alone.max()), np.asarray(got - got.max())
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_draw_does_not_depend_on_the_rows_beside_it():
  logits, draws = make_logits(), make_draws(SETTINGS).fold(3)
  draw = jit(draw_ids)
  ids = draw(draws, logits)
  for row in (0, 2, 7):
    alone = jax.tree.map(lambda x, row=row: x[row : row + 1], draws)
    assert draw(alone, logits[row : row + 1])[0] == ids[row]
  best = jnp.argmax(logits, axis=1)
  for row in (2, 6):
    assert ids[row] == best[row]


def test_draws_have_the_frequencies_they_should():
  count = 4000
  draws = make_draws([{'temperature': 0.5}] * count)
  logits = jnp.broadcast_to(make_logits()[0], (count, IDS))
  ids = jit(draw_ids)(draws, logits)
  got = np.bincount(ids, minlength=IDS) / count
  want = np.asarray(jax.nn.softmax(2 * logits[0]))
  np.testing.assert_allclose(got, want, atol=0.03)
  odds = jnp.full((count,), -0.4)
  share = np.mean(jit(draw_bools)(draws, odds))
  np.testing.assert_allclose(share, jax.nn.sigmoid(-0.8), atol=0.03)
  # With other numbers, other draws.
  again = jit(draw_ids)(draws.fold(1), logits)
  assert np.mean(again == ids) < 0.9


def test_yes_or_no_without_temperature_is_the_likelier():
  draws = make_draws([{'temperature': 0.0}] * 3)
  got = draw_bools(draws, jnp.asarray([-0.1, 0.1, 5.0]))
  assert got.tolist() == [False, True, True]


def test_compact_moves_what_is_kept_to_the_front():
  rng = np.random.default_rng(0)
  ids = rng.integers(1, 99, (5, 7))
  kept = rng.random((5, 7)) < 0.5
  kept[0], kept[1] = False, True
  packed, count = compact(jnp.asarray(ids, jnp.int32), jnp.asarray(kept))
  for row in range(5):
    want = ids[row, kept[row]].tolist()
    assert count[row] == len(want)
    assert packed[row].tolist() == want + [0] * (7 - len(want))
