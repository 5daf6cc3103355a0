"""Layers against plain computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model import layers


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_norm_is_computed_in_float32_and_given_in_the_compute_type(dtype):
  x = jnp.asarray(30 * np.random.default_rng(0).normal(size=(5, 8)), dtype)
  scale = jnp.arange(1.0, 9.0)
  y = layers.RMSNorm(dtype).apply({'params': {'scale': scale}}, x)
  exact = np.asarray(x, np.float64)
  want = exact / np.sqrt((exact**2).mean(-1, keepdims=True)) * scale
  assert y.dtype == dtype
  np.testing.assert_allclose(
    np.asarray(y, np.float32),
    want,
    rtol=2**-8 if dtype != jnp.float32 else 1e-5,
  )


def test_a_lone_row_is_normalised_as_its_vectors_are():
  rng = np.random.default_rng(0)
  x_SD = jnp.asarray(rng.normal(size=(24, 4)), jnp.float32)
  weight_SD = jnp.asarray(rng.normal(size=(24, 4)), jnp.float32)

  def loss(scale, x):
    y = layers.RMSNorm(jnp.float32).apply({'params': {'scale': scale}}, x)
    assert y.shape == x.shape
    return (y.reshape(24, 4) * weight_SD).sum()

  scale = jnp.arange(1.0, 5.0)
  grads = jax.grad(loss, (0, 1))
  of_vectors = grads(scale, x_SD)
  of_row = grads(scale, x_SD[None])
  np.testing.assert_allclose(of_row[0], of_vectors[0], rtol=1e-5)
  np.testing.assert_allclose(of_row[1][0], of_vectors[1], rtol=1e-5)


def test_a_norm_of_zeros_is_zero_with_a_finite_gradient():
  norm = layers.RMSNorm(jnp.float32)
  params = {'params': {'scale': jnp.ones(4)}}
  y, grad = jax.value_and_grad(lambda x: norm.apply(params, x).sum())(
    jnp.zeros(4)
  )
  assert float(y) == 0
  assert np.isfinite(grad).all()


def test_a_decoder_is_fed_the_id_before():
  ids = jnp.array([[5, 6, 7, 8], [1, 2, 3, 4]])
  is_first = jnp.array([[1, 0, 1, 0], [1, 0, 0, 0]], bool)
  np.testing.assert_array_equal(
    layers.shift_right(ids, is_first, 99), [[99, 5, 99, 7], [99, 1, 2, 3]]
  )


def test_a_feed_forward_layer_is_gated_by_silu():
  model = layers.SwiGLU(hidden=3, depth=2, dtype=jnp.float32)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
  variables = model.init(jax.random.key(0), x)
  params = jax.tree.map(np.asarray, variables['params'])
  gate, up = np.moveaxis(params['gate_up']['kernel'], 1, 0)
  hidden = x @ gate / (1 + np.exp(-x @ gate)) * (x @ up)
  np.testing.assert_allclose(
    model.apply(variables, x), hidden @ params['down']['kernel'], atol=1e-5
  )
