import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.ops import cache as cache_lib

SLOTS, WIDTHS = 5, ((1, 4), (2, 3))
# Rows of several groups, with padding at the end, and a row of padding alone.
GROUP = np.array(
  [[0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, -1, -1, -1, -1, -1], [-1] * 8], np.int32
)


def make_key_values():
  """Keys and values of two layers by position, exact in bfloat16."""
  rng = np.random.default_rng(0)
  return [
    tuple(
      jnp.float32(rng.integers(-99, 99, (*GROUP.shape, *width)))
      for width in WIDTHS
    )
    for _ in range(2)
  ]


def empty():
  return cache_lib.empty_cache(3, SLOTS, WIDTHS, 2, jnp.bfloat16)


def decoded():
  """Yields the cache and the step after each id of the rows."""
  cache = empty()
  for t, group in enumerate(GROUP.T):
    cache, step = cache_lib.advance(cache, group, group >= 0)
    layers = tuple(
      cache_lib.write(layer, key[:, t], value[:, t], step)
      for layer, (key, value) in zip(
        cache.layers, make_key_values(), strict=True
      )
    )
    cache = cache.replace(layers=layers)
    yield cache, step


def test_an_empty_cache_can_be_donated():
  """No two layers hold the same array."""
  after = jax.jit(lambda c: c, donate_argnums=0)(empty())
  assert [x.key_BGWA.shape for x in after.layers] == [(3, 1, SLOTS, 4)] * 2


def test_whole_rows_fill_a_cache_as_their_ids_do_one_by_one():
  *_, (cache, _) = decoded()
  filled = cache_lib.fill(empty(), make_key_values(), GROUP)
  assert jax.tree.structure(cache) == jax.tree.structure(filled)
  for a, b in zip(*map(jax.tree.leaves, (cache, filled)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(filled.length_B, [8, 3, 0])
  # Position 7 is in slot 2, position 3 in slot 3.
  key = make_key_values()[1][0]
  np.testing.assert_array_equal(
    filled.layers[1].key_BGWA[0, 0], key[0, [5, 6, 7, 3, 4], 0]
  )


def test_a_new_id_sees_the_ids_of_its_group_that_are_left():
  for t, (cache, step) in enumerate(decoded()):
    for row, group in enumerate(GROUP):
      if group[t] < 0:
        assert step.slot_B[row] == SLOTS
        assert not step.sees_BW[row].any()
        continue
      assert (step.position_B[row], step.slot_B[row]) == (t, t % SLOTS)
      last = np.arange(max(t - SLOTS + 1, 0), t + 1)
      sees = last[group[last] == group[t]] % SLOTS
      assert set(np.flatnonzero(step.sees_BW[row])) == set(sees)
    last_group = [row[: t + 1][row[: t + 1] >= 0] for row in GROUP]
    np.testing.assert_array_equal(
      cache_lib.last_group(cache), [x[-1] if len(x) else -1 for x in last_group]
    )


def test_an_empty_cache_has_no_last_group():
  np.testing.assert_array_equal(cache_lib.last_group(empty()), [-1] * 3)
