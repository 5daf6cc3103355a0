import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import LearningRatesConfig, OptimizerConfig
from abstractinator.training import optimizer
from tests.helpers import tiny_pyramid


def make_config(**changes):
  values = dict(
    kind='adamw',
    schedule='cosine',
    decay_fraction=0.3,
    relative_rates=LearningRatesConfig(1.0, 1.0, 1.0, 1.0),
    ema_decay=0.0,
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
  # The middle of the cosine is the mean of its ends.
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


@pytest.mark.parametrize(('total_steps', 'fits'), [(3, 1), (1, 0), (4, 4)])
def test_a_warmup_longer_than_the_run_becomes_half_of_it(total_steps, fits):
  config = make_config(warmup_steps=4)
  assert optimizer.warmup_of(config, total_steps) == fits
  schedule = optimizer.make_schedule(config, total_steps)
  expected = optimizer.make_schedule(
    make_config(warmup_steps=fits), total_steps
  )
  for step in range(total_steps):
    assert schedule(step) == expected(step) > 0


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
  updates, _ = jax.jit(tx.update)(zeros, jax.jit(tx.init)(PARAMS), PARAMS)
  moved = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, update in jax.tree_util.tree_leaves_with_path(updates)
    if np.any(update)
  }
  assert moved == DECAYED
  # The rate of step 0 times the weight decay.
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
  # (1 - beta1) times the gradient, clipped to a norm of 1.
  np.testing.assert_allclose(moments, [[0.3, 0.4]], rtol=1e-6)


def test_first_step_learns_at_the_schedule():
  tx = optimizer.make_optimizer(make_config(weight_decay=0.0), total_steps=10)
  params = {'kernel': jnp.zeros((1, 2))}
  state = tx.init(params)
  for rate in (0.0025, 0.005):
    updates, state = tx.update({'kernel': jnp.ones((1, 2))}, state, params)
    # Adam's first steps on a constant gradient have the size of the rate.
    np.testing.assert_allclose(updates['kernel'], [[-rate] * 2], rtol=1e-4)


def test_a_stable_rate_falls_at_the_end():
  schedule = optimizer.make_schedule(
    make_config(schedule='warmup_stable_decay'), total_steps=20
  )
  values = [float(schedule(step)) for step in range(20)]
  np.testing.assert_allclose(values[:4], [0.0025, 0.005, 0.0075, 0.01])
  # The last 6 of 20 steps fall, each by a sixth of nine tenths.
  np.testing.assert_allclose(values[4:14], 0.01)
  np.testing.assert_allclose(
    values[13:], np.linspace(0.01, 0.001, 7), rtol=1e-5
  )


def test_a_longer_run_that_raises_the_rate_says_so():
  def rise(schedule, step, old_steps=20, new_steps=40):
    config = make_config(schedule=schedule)
    return optimizer.rise_of_longer_run(
      config, config, old_steps, new_steps, step
    )

  line = rise('cosine', 20)
  assert '\n' not in line
  # The cosine of 40 steps is near its middle.
  assert 'step 20: the learning rate rises again, from 0.001 to 0.00589' in line
  assert "optimizer.schedule 'warmup_stable_decay' from the start" in line
  # In the middle of a cosine, too; and after the fall of the other schedule.
  assert rise('cosine', 10) is not None
  assert rise('warmup_stable_decay', 20) is not None
  # Before the fall, and where nothing falls.
  assert rise('warmup_stable_decay', 12) is None
  assert rise('constant', 20) is None
  assert rise('cosine', 20, new_steps=20) is None
  assert rise('cosine', 10, new_steps=15) is None
  assert rise('cosine', 3) is None


def test_a_constant_rate_stays():
  schedule = optimizer.make_schedule(make_config(schedule='constant'), 20)
  values = [float(schedule(step)) for step in range(20)]
  np.testing.assert_allclose(values[:3], [0.0025, 0.005, 0.0075])
  np.testing.assert_allclose(values[3:], 0.01)


def test_parts_learn_at_rates_of_their_own():
  kernel = {'kernel': jnp.ones((2, 2))}
  params = {
    'level_0': {
      'compressor': {'entropy_model': {'head': kernel}, 'encoder': kernel},
      'expander': {'head': kernel},
    },
    'top_lm': {'head': kernel},
  }
  rates = LearningRatesConfig(
    entropy_model=0.5, compressor=2.0, expander=3.0, top_lm=4.0
  )
  updates = []
  for relative_rates in (make_config().relative_rates, rates):
    tx = optimizer.make_optimizer(
      make_config(relative_rates=relative_rates), total_steps=10
    )
    updates.append(jax.jit(tx.update)(params, tx.init(params), params)[0])
  ratio = jax.tree.map(lambda a, b: float(b[0, 0] / a[0, 0]), *updates)
  expected = {
    'level_0': {
      'compressor': {
        'entropy_model': {'head': {'kernel': 0.5}},
        'encoder': {'kernel': 2.0},
      },
      'expander': {'head': {'kernel': 3.0}},
    },
    'top_lm': {'head': {'kernel': 4.0}},
  }
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5), ratio, expected
  )


def test_muon_makes_updates_of_blocks_orthogonal():
  rng = np.random.default_rng(0)
  shapes = {
    'attention': {'qkv': (8, 3, 2, 4), 'out': (2, 4, 8)},
    'ffn': {'gate_up': (8, 2, 16), 'down': (16, 8)},
  }
  block = jax.tree.map(
    lambda shape: {'kernel': jnp.asarray(rng.normal(size=shape), jnp.float32)},
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )
  block['ffn_norm'] = {'scale': jnp.ones(8)}
  params = {'stack': {'block_0': block}, 'head': {'kernel': jnp.ones((8, 5))}}
  config = make_config(kind='muon', weight_decay=0.0, warmup_steps=0)
  tx = optimizer.make_optimizer(config, total_steps=10)
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  of_block = updates['stack']['block_0']
  matrices = [
    of_block['attention']['qkv']['kernel'][:, 1].reshape(8, 8),
    of_block['attention']['out']['kernel'].reshape(8, 8),
    of_block['ffn']['gate_up']['kernel'][:, 0],
    of_block['ffn']['down']['kernel'],
  ]
  for matrix in matrices:
    sizes = np.linalg.svd(matrix, compute_uv=False)
    # Newton-Schulz is approximate; singular values of a Gaussian matrix spread
    # by far more.
    assert sizes.max() < 2.0 * sizes.min()
    # As large as the updates of AdamW usually are.
    rms = np.sqrt(np.mean(np.square(matrix)))
    assert 0.1 < rms / config.learning_rate < 0.3
  for of_adamw in (updates['head']['kernel'], of_block['ffn_norm']['scale']):
    np.testing.assert_allclose(np.abs(of_adamw[of_adamw != 0]), 0.01, rtol=0.01)


def test_every_matrix_of_blocks_is_one_of_muon():
  config = tiny_pyramid.make_config({}, {})
  model = tiny_pyramid.make_model(config)
  batch = tiny_pyramid.make_batch([[(16, 0)]], 16)
  params = jax.eval_shape(model.init, jax.random.key(0), batch)['params']
  for path, label in jax.tree_util.tree_leaves_with_path(
    optimizer.muon_labels(params)
  ):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    is_matrix = 'block_' in name and name.endswith('kernel')
    assert (label == 'muon') == is_matrix, name


def test_more_steps_than_an_optimizer_counts():
  with pytest.raises(ValueError, match='got 2147483648 steps, allowed: at'):
    optimizer.make_schedule(make_config(), 2**31)
