"""Read-only use of a quantizer: no statistics, no gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.quantizer_kinds import QUANTIZERS
from abstractinator.model.quantizers import read_only
from tests.helpers import tiny_quantizer
from tests.helpers.implementations import XLA
from tests.helpers.jitted import init


class Owner(nn.Module):
  """Module that quantizes its own vectors, and predicted ones read-only."""

  config: object

  def setup(self):
    self.quantizer = QUANTIZERS[self.config.kind](
      self.config, tiny_quantizer.WIDTH, XLA, jnp.float32
    )

  def __call__(self, x_BPD, is_valid_BP, row_B, predicted_BPD):
    own = self.quantizer(x_BPD, is_valid_BP, row_B)
    return own, self.predicted(predicted_BPD, is_valid_BP, row_B)

  def predicted(self, predicted_BPD, is_valid_BP, row_B):
    return read_only(self.quantizer)(predicted_BPD, is_valid_BP, row_B)

  def as_own(self, *args):
    return self.quantizer(*args)


VARIANTS = pytest.mark.parametrize(
  'variant', ['vq code space', 'vq gradient', 'rvq', 'rvq kmeans', 'fsq']
)


def make(variant):
  config = tiny_quantizer.config(**tiny_quantizer.VARIANTS[variant])
  x, is_valid, row = tiny_quantizer.inputs()
  predicted = tiny_quantizer.inputs(seed=1)[0]
  owner = Owner(config)
  args = (x, is_valid, row, predicted)
  return owner, init(owner, jax.random.key(0), *args), args


@VARIANTS
def test_read_only_use_writes_nothing(variant):
  """The collection `vq` is mutable, as in training."""
  owner, variables, args = make(variant)
  apply = jax.jit(owner.apply, static_argnames=('mutable', 'method'))
  (_, found), after = apply(variables, *args, mutable='vq')
  _, without = apply(variables, *args[:3], mutable='vq', method='as_own')
  want = apply(variables, args[3], *args[1:3], method='as_own')
  for a, b in zip(*map(jax.tree.leaves, (after, without)), strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True):
    np.testing.assert_array_equal(a, b)
  if 'vq' in variables:
    # Its own vectors do enter the statistics.
    assert any(
      np.any(a != b)
      for a, b in zip(
        *map(jax.tree.leaves, (after['vq'], variables['vq'])), strict=True
      )
    )


@VARIANTS
def test_gradients_pass_through_but_not_into_the_quantizer(variant):
  owner, variables, args = make(variant)

  def run(params, predicted):
    output = owner.apply(
      {**variables, 'params': params},
      predicted,
      *args[1:3],
      method='predicted',
    )
    return jnp.sum(
      output.vectors_BPD**2 + output.codebook_distance_BP[..., None]
    )

  params = variables.get('params', {})
  grads, grad = jax.jit(jax.grad(run, argnums=(0, 1)))(params, args[3])
  assert not any(map(np.any, jax.tree.leaves(grads)))
  assert np.any(grad)
