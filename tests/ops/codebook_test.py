import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import codebook
from abstractinator.ops.nearest_code import nearest_code
from tests.helpers import xla_flags

SIZE, WIDTH, COUNT = 10, 3, 24
NEVER = 10**6


def new_state(
  size=SIZE,
  width=WIDTH,
  interval=NEVER,
  after=NEVER,
  decay=0.9,
  usage=0.0,
  protected=(),
  kmeans_step=None,
):
  return codebook.initial_state(
    jax.random.key(0),
    size,
    width,
    decay=decay,
    reset_interval_steps=interval,
    reset_after_steps=after,
    reset_usage=usage,
    protected=protected,
    kmeans_step=kmeans_step,
  )


def make_state(size=SIZE, width=WIDTH, **policy):
  """A codebook after a step 0 that hit every entry: none is dead."""
  state = new_state(size, width, **policy)
  return state.replace(last_hit_step_K=jnp.zeros(size, jnp.int32))


def make_vectors(seed, count=COUNT, num_codes=SIZE):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(count, WIDTH)).astype(np.float32),
    rng.integers(0, num_codes, count).astype(np.int32),
    rng.random(count) < 0.8,
    rng.permutation(1000)[:count].astype(np.uint32),
  )


observe = jax.jit(codebook.observe)
advance = jax.jit(codebook.advance)


def assert_same(a, b, rounded=()):
  for name, value in vars(a).items():
    if name in rounded:
      np.testing.assert_allclose(value, getattr(b, name), atol=1e-6)
    else:
      np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


def test_observe_and_advance_are_a_moving_average():
  state = make_state()
  entries = np.asarray(state.codebook_KC, np.float64)
  count, total = np.ones(SIZE), entries.copy()
  for step in range(4):
    # The last entries are never hit.
    x, code, is_valid, name = make_vectors(step, num_codes=SIZE - 3)
    state = advance(observe(state, x, code, is_valid, name))
    hits = np.bincount(code[is_valid], minlength=SIZE)
    sums = np.zeros((SIZE, WIDTH))
    np.add.at(sums, code[is_valid], x[is_valid])
    count = 0.9 * count + 0.1 * hits
    total = 0.9 * total + 0.1 * sums
    smooth = (count + 1e-5) / (count.sum() + SIZE * 1e-5) * count.sum()
    np.testing.assert_allclose(state.ema_count_K, count, rtol=1e-6)
    np.testing.assert_allclose(
      state.codebook_KC, total / smooth[:, None], rtol=1e-5, atol=1e-6
    )
    assert int(state.step) == step + 1
    last = np.asarray(state.last_hit_step_K)
    np.testing.assert_array_equal(last[hits > 0], step)
    assert (last[-3:] == 0).all()
    for name in ('hits_K', 'sum_KC', 'priority_R', 'candidate_RC'):
      assert not np.asarray(getattr(state, name)).any()


def test_invalid_vectors_change_no_bit():
  x, code, is_valid, name = make_vectors(0)
  assert 0 < is_valid.sum() < COUNT
  state = make_state(interval=1, after=1)
  want = observe(state, x, code, is_valid, name)
  got = observe(
    state,
    np.where(is_valid[:, None], x, np.nan),
    np.where(is_valid, code, (code + 3) % SIZE),
    is_valid,
    np.where(is_valid, name, name + 5000),
  )
  assert_same(want, got)
  assert_same(advance(want), advance(got))
  assert np.isfinite(advance(got).codebook_KC).all()
  assert float(want.hits_K.sum()) == is_valid.sum()
  # All of them invalid: the step saw nothing.
  assert_same(state, observe(state, x, code, np.zeros(COUNT, bool), name))


def test_four_calls_of_any_order_are_one():
  x, code, is_valid, name = make_vectors(0, count=96)
  state = make_state(interval=1, after=1)
  whole = observe(state, x, code, is_valid, name)
  order = np.random.default_rng(1).permutation(96)
  parts = state
  for rows in np.split(order, 4):
    parts = observe(parts, x[rows], code[rows], is_valid[rows], name[rows])
  rounded = ('sum_KC', 'ema_sum_KC', 'codebook_KC')
  assert_same(whole, parts, rounded)
  assert_same(advance(whole), advance(parts), rounded)
  # Most places of the reservoir had several candidates.
  assert (np.asarray(whole.priority_R) > 0).sum() == SIZE


def test_the_reservoir_takes_valid_vectors_each_of_them_once():
  x, code, is_valid, name = make_vectors(0)
  state = advance(observe(make_state(), x, code, is_valid, name))
  filled = np.asarray(state.reservoir_step_R) == 0
  assert filled.sum() > 4
  source = [
    np.nonzero((x == vector).all(axis=1))[0]
    for vector in np.asarray(state.reservoir_RC)[filled]
  ]
  assert all(len(s) == 1 for s in source)
  chosen = np.concatenate(source)
  assert is_valid[chosen].all()
  assert len(set(chosen)) == len(chosen)


def test_another_step_draws_another_reservoir():
  x, code, is_valid, name = make_vectors(0)
  first = advance(observe(make_state(), x, code, is_valid, name))
  second = advance(observe(first, x, code, is_valid, name))
  assert np.any(first.reservoir_RC != second.reservoir_RC)


def test_dead_entries_become_other_real_vectors_when_due():
  """Every 3 steps, entries without hits for 5 steps; only 0 and 1 are hit."""
  state = make_state(interval=3, after=5)
  seen = np.zeros((0, WIDTH), np.float32)
  changed = {}
  for step in range(14):
    x, code, is_valid, name = make_vectors(step, count=60, num_codes=2)
    seen = np.concatenate([seen, x[is_valid]])
    before = np.asarray(state.codebook_KC)
    state = advance(observe(state, x, code, is_valid, name))
    after = np.asarray(state.codebook_KC)
    moved = np.nonzero(np.any(after != before, axis=1))[0]
    changed[step] = set(moved) - {0, 1}
    if changed[step]:
      vectors = after[sorted(changed[step])]
      is_real = (vectors[:, None] == seen[None]).all(-1).any(1)
      assert is_real.all()
      assert len(np.unique(vectors, axis=0)) == len(vectors)
      # A replaced entry weighs as a new one does.
      np.testing.assert_array_equal(
        np.asarray(state.ema_count_K)[sorted(changed[step])], 1
      )
  rest = set(range(2, SIZE))
  # Due at 0, 3, 6, ...; dead from 5 on, and again 5 steps after step 7.
  assert {s: c for s, c in changed.items() if c} == {6: rest, 12: rest}


@pytest.mark.parametrize('seed', range(3))
def test_dead_entries_do_not_become_the_same_vector(seed):
  """Rounding would decide which of two equal entries is the nearer one."""
  size, copies = 40, 6
  rng = np.random.default_rng(seed)
  vectors = np.random.default_rng(9).normal(size=(5, WIDTH))

  def step(state):
    noise = rng.uniform(-1e-7, 1e-7, (5 * copies, WIDTH))
    x = np.tile(vectors, (copies, 1)) * (1 + noise)
    return advance(
      observe(
        state,
        x.astype(np.float32),
        np.zeros(len(x), np.int32),
        np.ones(len(x), bool),
        np.arange(len(x), dtype=np.uint32),
      )
    )

  state = step(new_state(size, interval=1, after=3))
  distance = np.linalg.norm(state.codebook_KC[:, None] - vectors, axis=-1)
  entries, which = np.nonzero(distance < 1e-5)
  # Each is found once, in an order that does not depend on the noise.
  assert sorted(which) == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal(entries, [1, 2, 3, 4, 5])
  expected = step(new_state(size, interval=1, after=3)).codebook_KC
  np.testing.assert_allclose(state.codebook_KC[1:], expected[1:], atol=1e-5)
  # No entry becomes what another entry is already, even a dead one.
  turned = jnp.roll(state.codebook_KC, 7, axis=0)
  for again in (state, state.replace(codebook_KC=turned, reset_usage=2.0)):
    after = step(again)
    np.testing.assert_array_equal(after.codebook_KC[1:], again.codebook_KC[1:])


def test_a_dead_entry_stays_where_the_reservoir_is_empty():
  state = make_state(interval=1, after=1)
  state = state.replace(last_hit_step_K=state.last_hit_step_K - 1)
  after = advance(state)
  np.testing.assert_array_equal(after.codebook_KC, state.codebook_KC)
  # Three vectors replace three dead entries, no more.
  x, code, _, name = make_vectors(0)
  few = observe(state, x[:3], code[:3] * 0, np.ones(3, bool), name[:3])
  places = int((np.asarray(few.priority_R) > 0).sum())
  after = advance(few)
  moved = np.any(after.codebook_KC != state.codebook_KC, axis=1)
  assert 1 <= places <= 3
  assert int(moved[1:].sum()) == places


def test_a_new_codebook_starts_over_from_the_first_vectors():
  state = new_state()
  x, _, is_valid, name = make_vectors(0)
  state = observe(state, x, np.zeros(COUNT, int), is_valid, name)
  filled = int((np.asarray(state.priority_R) > 0).sum())
  state = advance(state)
  is_real = (np.asarray(state.codebook_KC)[:, None] == x).all(-1).any(1)
  assert not is_real[0]
  assert int(is_real.sum()) == min(filled, SIZE - 1) > 4


def test_no_vector_becomes_an_entry_twice():
  """Three vectors, many dead entries, and nothing to follow."""
  state = new_state(interval=1, after=1)
  x, _, _, name = make_vectors(0)
  vectors = {tuple(vector) for vector in x[:3]}
  state = observe(state, x[:3], np.zeros(3, int), np.ones(3, bool), name[:3])
  after_step = []
  for _ in range(4):
    state = advance(state)
    entries = [tuple(entry) for entry in np.asarray(state.codebook_KC)]
    after_step.append([entry in vectors for entry in entries[1:]])
    assert 0 < sum(after_step[-1]) == len(vectors.intersection(entries[1:]))
  # All are dead again and again, but there is nothing new to become.
  assert after_step[1:] == after_step[:-1]
  x, code, is_valid, name = make_vectors(1)
  after = advance(observe(state, x, 0 * code, is_valid, name))
  is_moved = np.any(after.codebook_KC != state.codebook_KC, axis=1)
  assert is_moved.sum() > 4


@pytest.mark.parametrize('decay', [0.5, 0.97])
def test_entries_without_hits_keep_their_place(decay):
  """Also when their counts have all but vanished."""
  state = make_state(decay=decay)
  start = np.asarray(state.codebook_KC)
  for step in range(50):
    x, code, is_valid, name = make_vectors(step, num_codes=2)
    state = advance(observe(state, x, code, is_valid, name))
  np.testing.assert_array_equal(state.codebook_KC[2:], start[2:])
  assert np.abs(state.codebook_KC[:2] - start[:2]).max() > 0.1
  # But nothing holds them there: hits count as before.
  x, code, _, name = make_vectors(50)
  state = advance(observe(state, x, 0 * code + 5, np.ones(COUNT, bool), name))
  old, new = decay**51, 1 - decay
  want = (old * start[5] + new * x.sum(0)) / (old + new * COUNT)
  np.testing.assert_allclose(state.codebook_KC[5], want, rtol=1e-3)


def test_rare_entries_are_replaced_and_start_with_enough():
  """Entry 0 gets 9 hits a step, 1 gets 1, the others none and stay young."""
  state = make_state(size=4, interval=20, usage=0.5, decay=0.5)
  code = np.array([0] * 9 + [1], np.int32)
  for step in range(21):
    x, _, _, name = make_vectors(step, count=10)
    before = state
    state = advance(observe(state, x, code, np.ones(10, bool), name))
  # The mean count is 10 / 4; all but entry 0 are below half of it.
  is_old = np.all(state.codebook_KC == before.codebook_KC, axis=1)
  assert not is_old.any()
  is_real = (np.asarray(state.codebook_KC)[1:, None] == x).all(-1).any(1)
  assert is_real.all()
  np.testing.assert_allclose(state.ema_count_K[1:], 1.25, rtol=1e-3)
  np.testing.assert_allclose(
    state.ema_sum_KC[1:], 1.25 * state.codebook_KC[1:], rtol=1e-3
  )
  again = make_state(size=4, interval=20, usage=0.0, decay=0.5)
  for step in range(21):
    x, _, _, name = make_vectors(step, count=10)
    again = advance(observe(again, x, code, np.ones(10, bool), name))
  np.testing.assert_allclose(again.ema_count_K, [9, 1, 0, 0], atol=1e-4)


def test_protected_entries_stay():
  state = make_state(interval=1, after=1, protected=(2, 5))
  start = np.asarray(state.codebook_KC)
  for step in range(3):
    x, code, is_valid, name = make_vectors(step, count=60, num_codes=2)
    state = advance(observe(state, x, code, is_valid, name))
  moved = np.any(state.codebook_KC != start, axis=1)
  np.testing.assert_array_equal(np.flatnonzero(~moved), [2, 5])


@pytest.mark.parametrize('kmeans_step', [0, 2])
def test_kmeans_starts_from_the_centers_of_its_step(kmeans_step):
  """Three tight clusters of valid vectors in step `kmeans_step`."""
  rng = np.random.default_rng(0)
  means = 10 * rng.normal(size=(3, WIDTH))
  state = new_state(kmeans_step=kmeans_step, protected=(1,))
  start = np.asarray(state.codebook_KC)
  for step in range(kmeans_step + 1):
    label = rng.integers(0, 3, 200)
    x = means[label] if step == kmeans_step else -means[label]
    x = (x + 0.01 * rng.normal(size=x.shape)).astype(np.float32)
    is_valid = rng.random(200) < 0.5
    x[~is_valid] = np.nan
    name = np.arange(200, dtype=np.uint32)
    state = advance(observe(state, x, np.zeros(200, np.int32), is_valid, name))
  entries = np.delete(np.asarray(state.codebook_KC), 1, axis=0)
  distance = np.linalg.norm(entries[:, None] - means, axis=-1)
  assert (distance.min(axis=0) < 0.1).all()
  assert (distance.min(axis=1) < 0.1).all()
  np.testing.assert_array_equal(state.codebook_KC[1], start[1])
  np.testing.assert_array_equal(np.delete(state.ema_count_K, 1), 1)


@pytest.mark.parametrize('kmeans_step', [None, 0])
def test_300_clusters_get_an_entry_of_their_own(kmeans_step):
  """1024 entries, 50 steps of 1024 vectors, half of the slots empty."""
  size, width, clusters, count = 1024, 8, 300, 1024
  rng = np.random.default_rng(0)
  centers = 4 * rng.normal(size=(clusters, width))
  state = new_state(
    size, width, interval=10, after=20, decay=0.97, kmeans_step=kmeans_step
  )

  # Optimized: it runs for longer than it takes to compile.
  @functools.partial(jax.jit, compiler_options=xla_flags.AS_USERS)
  def step(state, x, is_valid, name):
    code = nearest_code(x, state.codebook_KC, implementation='xla')
    return codebook.advance(codebook.observe(state, x, code, is_valid, name))

  def draw(count):
    label = rng.integers(0, clusters, count)
    x = centers[label] + 0.1 * rng.normal(size=(count, width))
    return label, jnp.asarray(x, jnp.float32)

  is_valid = jnp.arange(2 * count) % 2 == 0
  for i in range(50):
    _, x = draw(count)
    slots = jnp.zeros((2 * count, width)).at[::2].set(x)
    name = jnp.arange(2 * count, dtype=jnp.uint32) + 2 * count * i
    state = step(state, slots, is_valid, name)
  label, x = draw(6000)
  code = np.asarray(nearest_code(x, state.codebook_KC, implementation='xla'))
  labels_of = {c: set(label[code == c]) for c in set(code)}
  own = set().union(*(found for found in labels_of.values() if len(found) == 1))
  assert len(own) >= 0.9 * clusters


def test_kmeans_finds_separate_clusters_that_are_all_started_from():
  rng = np.random.default_rng(0)
  means = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
  label = np.concatenate([np.arange(4), rng.integers(0, 4, 200)])
  x = means[label] + 0.5 * rng.normal(size=(204, 2))
  x = x.astype(np.float32)
  is_valid = np.concatenate([np.ones(4, bool), rng.random(200) < 0.7])
  centers, has_vectors = codebook.kmeans(
    jnp.asarray(np.where(is_valid[:, None], x, np.nan)),
    jnp.asarray(is_valid),
    4,
    iterations=5,
  )
  assert has_vectors.all()
  for k in range(4):
    want = x[is_valid & (label == k)].mean(axis=0)
    np.testing.assert_allclose(centers[k], want, atol=1e-5)


def test_iterations_of_kmeans_lower_the_distance():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(400, 3)), jnp.float32)
  ok = jnp.ones(400, bool)

  def distance(iterations):
    centers, _ = codebook.kmeans(x, ok, 16, iterations=iterations)
    return float(np.square(x[:, None] - centers).sum(-1).min(-1).mean())

  found = [distance(i) for i in (0, 1, 3, 10)]
  assert found == sorted(found, reverse=True)
  assert found[-1] < 0.75 * found[0]


def test_kmeans_leaves_centers_empty_if_vectors_are_fewer():
  x = jnp.arange(12.0).reshape(6, 2)
  is_valid = jnp.array([False, True, False, True, True, False])
  centers, has_vectors = codebook.kmeans(x, is_valid, 5, iterations=3)
  np.testing.assert_array_equal(has_vectors, [True, True, True, False, False])
  np.testing.assert_array_equal(centers[:3], x[is_valid])


def test_kmeans_without_vectors_leaves_every_center_empty():
  x = jnp.full((6, 2), jnp.nan)
  centers, has_vectors = codebook.kmeans(x, jnp.zeros(6, bool), 4, iterations=3)
  assert not has_vectors.any()
  assert np.isfinite(centers).all()
