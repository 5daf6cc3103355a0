"""Cost of codes under their soft assignment, and the segments it moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from abstractinator.model.quantizer_kinds import QUANTIZERS
from abstractinator.objective import losses
from tests.helpers.implementations import XLA
from tests.helpers.jitted import init, jit
from tests.helpers.tiny_pyramid import make_config

KINDS = {
  'vq': {},
  'rvq': {'codebook_size': 5},
  'fsq': {'levels': (4, 3)},
}


def quantizer_of(kind):
  changes = {f'quantizer.{k}': v for k, v in KINDS[kind].items()}
  config = make_config({'quantizer.kind': kind, **changes}).levels[0].quantizer
  quantizer = QUANTIZERS[kind](config, 16, XLA, jnp.float32)
  x = jax.random.normal(jax.random.key(1), (2, 6, 16))
  is_code = jnp.arange(6) < jnp.array([[6], [4]])
  variables = init(quantizer, jax.random.key(0), x, is_code, jnp.arange(2))
  return quantizer, variables, x, is_code


@pytest.mark.parametrize('kind', KINDS)
def test_the_likeliest_digit_is_the_chosen_one(kind):
  quantizer, variables, x, is_code = quantizer_of(kind)
  output = jit(quantizer.apply)(variables, x, is_code, jnp.arange(2))
  soft = jit(quantizer.apply, method='soft_digits')(variables, x, 0.3)
  digits = np.asarray(output.digits_BPM)
  assert len(soft) == digits.shape[-1]
  for m, p in enumerate(soft):
    np.testing.assert_allclose(np.sum(p, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(np.argmax(p, axis=-1), digits[..., m])


@pytest.mark.parametrize('kind', KINDS)
def test_the_gradient_is_that_of_finite_differences(kind):
  quantizer, variables, x, is_code = quantizer_of(kind)
  sizes = quantizer.config.stage_sizes
  keys = jax.random.split(jax.random.key(2), len(sizes))
  logits = tuple(
    jax.random.normal(key, (*is_code.shape, size))
    for key, size in zip(keys, sizes, strict=True)
  )

  @jax.jit
  def term(x):
    soft = quantizer.apply(variables, x, 2.0, method='soft_digits')
    return losses.rate_term(soft, logits, is_code)

  # Away from where another digit becomes the nearest.
  check_grads(
    term, (x,), order=1, modes=['rev'], eps=1e-3, atol=2e-2, rtol=2e-2
  )


def test_its_value_is_the_cost_less_the_entropy_of_the_mean():
  q = np.array([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]]])
  logits = np.log(np.array([[[0.2, 0.3, 0.5, 9.0]] * 3]))
  logits = logits[..., :3]
  is_code = np.array([[True, True, False]])
  cost = -(0.5 * np.log(0.2) + 0.5 * np.log(0.3)) - np.log(0.2)
  mean = np.array([0.75, 0.25])
  spread = -np.sum(mean * np.log(mean))
  value = losses.rate_term((jnp.asarray(q),), (jnp.asarray(logits),), is_code)
  np.testing.assert_allclose(value, cost - 2 * spread, rtol=1e-5)


def test_predictions_get_no_gradient():
  quantizer, variables, x, is_code = quantizer_of('vq')
  soft = jit(quantizer.apply, method='soft_digits')(variables, x, 1.0)
  grads = jit(
    jax.grad(lambda logits: losses.rate_term(soft, (logits,), is_code))
  )(jnp.zeros(soft[0].shape))
  np.testing.assert_array_equal(grads, 0.0)


def test_it_lowers_the_cost_of_codes_of_a_source_whose_answer_is_known():
  """With one prediction p for all segments the mean assignment becomes p.

  There the term is 0, its least value, and a code costs the entropy of p.
  """
  p = np.array([0.7, 0.2, 0.1])
  is_code = jnp.ones((1, 5), bool)
  expected = jnp.broadcast_to(jnp.log(p), (1, 5, 3))

  def term(scores):
    return losses.rate_term((jax.nn.softmax(scores),), (expected,), is_code)

  scores = jax.random.normal(jax.random.key(0), (1, 5, 3))
  optimizer = optax.adam(0.05)
  state, step = optimizer.init(scores), jax.jit(jax.value_and_grad(term))
  update = jax.jit(optimizer.update)
  for _ in range(300):
    value, grads = step(scores)
    updates, state = update(grads, state)
    scores = optax.apply_updates(scores, updates)
  mean = np.asarray(jax.nn.softmax(scores).mean((0, 1)))
  np.testing.assert_allclose(mean, p, atol=0.01)
  np.testing.assert_allclose(value, 0.0, atol=1e-3)
  cost = -float(np.sum(mean * np.log(p)))
  np.testing.assert_allclose(cost, -np.sum(p * np.log(p)), atol=0.02)
