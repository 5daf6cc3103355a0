"""Vector quantizers against plain computations."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import tiny_quantizer
from tests.helpers.tiny_quantizer import WIDTH, inputs


def test_codes_are_the_nearest_entries_and_distances_reach_the_input_only():
  model = tiny_quantizer.model()
  x, is_valid, row = inputs()
  variables = model.init(jax.random.key(0), x, is_valid, row)
  output = model.apply(variables, x, is_valid, row)
  entries = np.asarray(variables['vq']['state'].codebook_KC)
  distance = np.mean(np.square(np.asarray(x)[:, :, None] - entries), axis=-1)
  np.testing.assert_array_equal(output.codes_BP, distance.argmin(-1))
  np.testing.assert_allclose(output.distance_BP, distance.min(-1), rtol=1e-5)
  grad = jax.grad(
    lambda x: model.apply(variables, x, is_valid, row).distance_BP.sum()
  )(x)
  np.testing.assert_allclose(
    grad, 2 * (x - entries[output.codes_BP]) / WIDTH, rtol=1e-5, atol=1e-6
  )


def test_cosine_codes_are_the_entries_of_the_nearest_direction():
  model = tiny_quantizer.model(cosine=True)
  variables = model.init(jax.random.key(0), *inputs())
  x, is_valid, row = inputs()
  output = model.apply(variables, x, is_valid, row)
  entries = np.asarray(variables['vq']['state'].codebook_KC)
  entries = entries / np.linalg.norm(entries, axis=-1, keepdims=True)
  cosine = np.einsum('bpd,kd->bpk', x, entries)
  np.testing.assert_array_equal(output.codes_BP, cosine.argmax(-1))
  np.testing.assert_allclose(
    output.vectors_BPD,
    entries[output.codes_BP] * np.sqrt(x.shape[-1]),
    atol=1e-5,
  )
  # The mean of unit vectors enters the moving average.
  _, collections = model.apply(variables, x, is_valid, row, mutable=['vq'])
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  np.testing.assert_allclose(
    collections['vq']['state'].sum_KC.sum(0),
    jnp.where(is_valid[..., None], x / length, 0).sum((0, 1)),
    atol=1e-5,
  )
