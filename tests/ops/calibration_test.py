import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config.segmentation import MAX_THRESHOLD
from abstractinator.ops import calibration, segmentation
from abstractinator.ops.segmentation_rules import (
  RULES,
  Policy,
  Wishes,
  wishes,
)
from tests.helpers import xla_flags

SIZE = 44

segment = jax.jit(
  functools.partial(
    segmentation.segment, min_length=1, max_length=SIZE, num_slots=SIZE
  )
)


def make_segments(lengths):
  """One row: segments of these lengths, then padding."""
  starts = np.zeros(SIZE, bool)
  starts[np.cumsum([0, *lengths[:-1]])] = bool(lengths)
  document = np.where(np.arange(SIZE) < sum(lengths), 0, -1)
  return segment(Wishes.at(starts[None]), jnp.asarray(document[None]))


def step(state, *rows):
  for lengths in rows:
    state = calibration.observe(state, make_segments(lengths))
  return calibration.advance(state)


@pytest.mark.parametrize(
  ('lengths', 'move'),
  [
    # Wanted: 4. Step: 0.1 bits per relative error, at most.
    ([2, 2, 2], 0.05),
    ([3, 3, 6], 0.0),
    ([5], -0.025),
    ([40], -0.1),
    ([1, 1, 1, 1], 0.075),
  ],
)
def test_short_segments_raise_and_long_ones_lower_the_threshold(lengths, move):
  state = calibration.initial_state(0.3, 4.0, 0.1, 'bits')
  after = step(state, lengths)
  np.testing.assert_allclose(after.threshold, 0.3 + move, atol=1e-6)


def test_a_step_sees_the_mean_over_all_of_its_batches():
  """6 ids in 3 segments and 10 in 1: 4 a segment, nothing to do."""
  state = calibration.initial_state(0.3, 4.0, 0.1, 'bits')
  state = calibration.observe(state, make_segments([2, 2, 2]))
  state = calibration.observe(state, make_segments([10]))
  assert float(state.num_ids) == 16
  assert float(state.num_segments) == 4
  assert float(state.threshold) == np.float32(0.3)
  after = calibration.advance(state)
  np.testing.assert_allclose(after.threshold, 0.3, atol=1e-7)
  # The next step starts from nothing.
  assert float(after.num_ids) == float(after.num_segments) == 0
  np.testing.assert_allclose(step(after, [2, 2]).threshold, 0.35, atol=1e-6)


def test_without_target_the_threshold_stays():
  state = calibration.initial_state(0.3, None, 0.1, 'bits')
  after = step(state, [1, 1, 1])
  assert float(after.threshold) == np.float32(0.3)
  assert float(after.num_ids) == float(after.num_segments) == 0


def test_without_segments_nothing_moves():
  state = calibration.initial_state(0.3, 4.0, 0.1, 'bits')
  assert float(step(state, []).threshold) == np.float32(0.3)
  assert float(step(state).threshold) == np.float32(0.3)


def test_a_relative_step_multiplies_and_one_of_ids_counts_lengths():
  """Segments half as long as wanted: a relative error of a half."""
  relative = calibration.initial_state(3.0, 4.0, 0.1, 'relative')
  np.testing.assert_allclose(
    step(relative, [2, 2]).threshold, 3 * np.exp(0.05), rtol=1e-6
  )
  ids = calibration.initial_state(-3.0, 4.0, 0.1, 'ids')
  np.testing.assert_allclose(
    step(ids, [2, 2]).threshold, -3 + 4 * 4 * 0.05, rtol=1e-6
  )


# Thresholds to start from.
STARTS = {
  'entropy_delta': (-1.0, 4.0),
  'entropy_threshold': (0.0, 6.0),
  'equal_information': (1.0, 60.0),
  'stride': (1.0, 16.0),
  'space': (-9.0, 9.0),
}


@pytest.mark.parametrize(
  'rule',
  [
    'entropy_delta',
    'equal_information',
    'space',
    # Their thresholds move as those of the rules before do.
    pytest.param('entropy_threshold', marks=pytest.mark.nightly),
    pytest.param('stride', marks=pytest.mark.nightly),
  ],
)
def test_settles_at_the_target_length(rule):
  """Calibrates on a stream that changes, and tests on batches held out."""
  rows, length = 8, 256
  rng = np.random.default_rng(0)
  # Words of about five letters and a space, in documents of about 60 ids.
  shape = (20, rows, length)
  is_space = rng.random(shape) < 0.18
  ids = jnp.asarray(np.where(is_space, ord(' '), ord('a')), jnp.int32)
  document = jnp.asarray(np.cumsum(rng.random(shape) < 1 / 60, axis=-1))
  entropy = jnp.asarray(rng.gamma(4.0, 0.6, shape), jnp.float32)
  surprisal = jnp.asarray(rng.exponential(2.4, shape), jnp.float32)

  def divide(threshold, i):
    batch = [x[i] for x in (ids, document, entropy, surprisal)]
    policy = Policy(threshold, rule, 1, 16)
    return segmentation.segment(
      wishes(segmentation.known_before(*batch), policy),
      batch[1],
      min_length=1,
      max_length=16,
      num_slots=length,
    )

  # Optimized: it runs for longer than it takes to compile.
  @functools.partial(jax.jit, compiler_options=xla_flags.AS_USERS)
  def run(start, target):
    def one(i, threshold):
      state = calibration.initial_state(
        threshold, target, 0.05, RULES[rule].move
      )
      # The last ten batches are held out.
      segments = divide(threshold, i % 10)
      return calibration.advance(calibration.observe(state, segments)).threshold

    threshold = jax.lax.fori_loop(0, 400, one, jnp.float32(start))
    counts = jax.lax.map(
      lambda i: divide(threshold, i).count_B.sum(), jnp.arange(10, 20)
    )
    return counts.sum()

  for target in (3.0, 4.5, 6.0):
    for start in STARTS[rule]:
      count = run(start, target)
      assert 10 * rows * length / float(count) == pytest.approx(
        target, rel=0.02
      ), (start, target)


@pytest.mark.parametrize('move', calibration.MOVES)
def test_a_length_that_cannot_be_reached_keeps_the_threshold_in_range(move):
  state = calibration.initial_state(99990.0, 16.0, 1.0, move)
  for _ in range(20):
    state = calibration.advance(
      state.replace(num_ids=jnp.float32(0.0), num_segments=jnp.float32(1.0))
    )
  assert float(state.threshold) == MAX_THRESHOLD
