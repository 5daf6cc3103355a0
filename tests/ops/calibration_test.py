import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import calibration, segmentation

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
  return segment(jnp.asarray(starts[None]), jnp.asarray(document[None]))


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
  state = calibration.initial_state(0.3, 4.0, 0.1)
  after = step(state, lengths)
  np.testing.assert_allclose(after.threshold_bits, 0.3 + move, atol=1e-6)


def test_a_step_sees_the_mean_over_all_of_its_batches():
  """6 ids in 3 segments and 10 in 1: 4 a segment, nothing to do."""
  state = calibration.initial_state(0.3, 4.0, 0.1)
  state = calibration.observe(state, make_segments([2, 2, 2]))
  state = calibration.observe(state, make_segments([10]))
  assert float(state.num_ids) == 16
  assert float(state.num_segments) == 4
  assert float(state.threshold_bits) == np.float32(0.3)
  after = calibration.advance(state)
  np.testing.assert_allclose(after.threshold_bits, 0.3, atol=1e-7)
  # The next step starts from nothing.
  assert float(after.num_ids) == float(after.num_segments) == 0
  np.testing.assert_allclose(
    step(after, [2, 2]).threshold_bits, 0.35, atol=1e-6
  )


def test_without_target_the_threshold_stays():
  state = calibration.initial_state(0.3, None, 0.1)
  after = step(state, [1, 1, 1])
  assert float(after.threshold_bits) == np.float32(0.3)
  assert float(after.num_ids) == float(after.num_segments) == 0


def test_without_segments_nothing_moves():
  state = calibration.initial_state(0.3, 4.0, 0.1)
  assert float(step(state, []).threshold_bits) == np.float32(0.3)
  assert float(step(state).threshold_bits) == np.float32(0.3)


def test_converges_to_the_target_length():
  """On entropies of noise, where the length grows with the threshold."""
  bits = jnp.asarray(
    2 + np.random.default_rng(0).normal(size=(4, 512)), jnp.float32
  )
  document = jnp.zeros((4, 512), jnp.int32)

  def lengths(state):
    return segmentation.segment(
      segmentation.entropy_jumps(bits, state.threshold_bits),
      document,
      min_length=1,
      max_length=50,
      num_slots=512,
    )

  @jax.jit
  def run(state):
    return jax.lax.fori_loop(
      0,
      300,
      lambda _, s: calibration.advance(calibration.observe(s, lengths(s))),
      state,
    )

  for start in (-1.0, 4.0):
    state = run(calibration.initial_state(start, 6.0, 0.1))
    length = bits.size / float(lengths(state).count_B.sum())
    assert abs(length / 6.0 - 1) < 0.02
