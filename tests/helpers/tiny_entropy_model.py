"""An entropy model small enough for tests."""

import jax
import jax.numpy as jnp

from abstractinator.model.entropy_model import EntropyModel
from abstractinator.types import NUM_BYTES
from tests.helpers.implementations import XLA
from tests.helpers.jitted import init


def make(config):
  """Returns the model of a level, its initial variables, and others.

  Initial predictions are nearly the same for all ids; with the others they
  differ.
  """
  module = EntropyModel(
    config.entropy_model,
    config.entropy_heads,
    config.d_model,
    NUM_BYTES,
    XLA,
    jnp.dtype('float32'),
  )
  zeros = jnp.zeros((1, 4), jnp.int32)
  initial = init(module, jax.random.key(0), zeros, zeros)
  scaled = jax.tree_util.tree_map_with_path(
    lambda path, x: x * 20 if 'head' in str(path) else x, initial
  )
  return module, initial, scaled
