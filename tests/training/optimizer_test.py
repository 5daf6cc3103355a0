import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import OptimizerConfig
from abstractinator.training import optimizer


def make_config(**changes):
  values = dict(
    learning_rate=1e-2,
    final_fraction=0.1,
    warmup_steps=4,
    weight_decay=0.5,
    beta1=0.9,
    beta2=0.98,
    clip_norm=1.0,
  )
  return OptimizerConfig(**(values | changes))


def test_schedule():
  schedule = optimizer.make_schedule(make_config(), total_steps=14)
  values = [float(schedule(step)) for step in range(14)]
  np.testing.assert_allclose(values[:4], [0.0025, 0.005, 0.0075, 0.01])
  # Halfway down the cosine lies the mean of its ends.
  np.testing.assert_allclose(values[8], 0.0055, rtol=1e-5)
  assert all(a > b for a, b in itertools.pairwise(values[3:]))
  np.testing.assert_allclose(values[13], 0.001, rtol=1e-5)
  np.testing.assert_allclose(schedule(20), 0.001, rtol=1e-5)
  # The optimizer counts on the device.
  on_device = jax.jit(schedule)(jnp.int32(5))
  np.testing.assert_allclose(on_device, values[5], rtol=1e-6)


@pytest.mark.parametrize('warmup_steps', [0, 1])
def test_schedule_without_warmup(warmup_steps):
  config = make_config(warmup_steps=warmup_steps)
  schedule = optimizer.make_schedule(config, total_steps=5)
  np.testing.assert_allclose(schedule(0), 0.01)
  np.testing.assert_allclose(schedule(4), 0.001, rtol=1e-5)


@pytest.mark.parametrize('steps', [1, 3])
def test_schedule_of_warmup_only(steps):
  config = make_config(warmup_steps=steps)
  schedule = optimizer.make_schedule(config, total_steps=steps)
  np.testing.assert_allclose(schedule(0), 0.01 / steps)
  np.testing.assert_allclose(schedule(steps - 1), 0.01)


def test_warmup_longer_than_the_run():
  with pytest.raises(ValueError, match=r'optimizer\.warmup_steps: got 4.* 3 '):
    optimizer.make_optimizer(make_config(), total_steps=3)


PARAMS = {
  'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
  'embed': {'embedding': jnp.ones((5, 2))},
  'norm': {'scale': jnp.ones(2)},
  'pool': {'queries': jnp.ones((2, 2)), 'vector': jnp.ones(2)},
  'odd': {'bias': jnp.ones((2, 2)), 'scale': jnp.ones((2, 2))},
}
DECAYED = {'dense/kernel', 'pool/queries'}


def test_decay_moves_matrices_only():
  tx = optimizer.make_optimizer(make_config(), total_steps=10)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
  moved = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, update in jax.tree_util.tree_leaves_with_path(updates)
    if np.any(update)
  }
  assert moved == DECAYED
  # Rate of step 0 times the decay.
  np.testing.assert_allclose(
    updates['dense']['kernel'], np.full((2, 3), -0.0025 * 0.5), rtol=1e-6
  )


def test_gradient_is_clipped():
  tx = optimizer.make_optimizer(make_config(beta1=0.5), total_steps=10)
  gradient = {'kernel': jnp.array([[30.0, 40.0]])}
  params = {'kernel': jnp.zeros((1, 2))}
  _, state = tx.update(gradient, tx.init(params), params)
  (moments,) = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if 'mu' in jax.tree_util.keystr(path)
  ]
  # (1 - beta1) times the gradient scaled down to a norm of 1.
  np.testing.assert_allclose(moments, [[0.3, 0.4]], rtol=1e-6)


def test_first_step_learns_at_the_schedule():
  tx = optimizer.make_optimizer(make_config(weight_decay=0.0), total_steps=10)
  params = {'kernel': jnp.zeros((1, 2))}
  state = tx.init(params)
  for rate in (0.0025, 0.005):
    updates, state = tx.update({'kernel': jnp.ones((1, 2))}, state, params)
    # Adam's first steps on a constant gradient have the size of the rate.
    np.testing.assert_allclose(updates['kernel'], [[-rate] * 2], rtol=1e-4)
