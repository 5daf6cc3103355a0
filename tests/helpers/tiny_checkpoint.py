"""A state with a leaf of every kind, and checkpoints of it."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.runs.checkpoint import Checkpointer
from abstractinator.runs.sharding import state_shardings

CONFIG = {'seed': 3, 'model': {'levels': [{'d_model': 8}], 'x': None}}


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  collections: dict
  opt_state: tuple


def make_state(seed=0):
  """A state with a leaf of every kind there is."""
  key = jax.random.key(seed)
  params = {
    'dense': {
      'kernel': jax.random.normal(key, (16, 8)),
      'bias': jnp.arange(8, dtype=jnp.bfloat16) / 7,
    },
    'embed': {'embedding': jax.random.normal(key, (9, 16))},
  }
  vq = {
    'is_used': jnp.arange(5) % 2 == 0,
    'last_hit': jnp.arange(5, dtype=jnp.uint32) + jnp.uint32(2**31),
    'small': jnp.arange(-3, 4, dtype=jnp.int8),
  }
  return State(
    step=jnp.int32(7),
    params=params,
    collections={'vq': vq, 'calibration': {'threshold': jnp.float32(0.3)}},
    opt_state=optax.adamw(1e-3).init(params),
  )


def abstract(state, mesh=None):
  """Shapes and dtypes; shardings too if there is a mesh."""
  if mesh is None:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    state_shardings(state, mesh),
  )


def on_mesh(state, mesh):
  return jax.device_put(state, state_shardings(state, mesh))


def save(workdir, *steps, **kwargs):
  with Checkpointer(workdir, max_to_keep=9) as checkpointer:
    for step in steps:
      checkpointer.save(
        step, make_state(step), {'next_index': step}, CONFIG, **kwargs
      )


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
  assert jax.tree.map(lambda x: x.dtype, actual) == jax.tree.map(
    lambda x: x.dtype, expected
  )


def error_of(function, *args):
  with pytest.raises(ValueError) as info:
    function(*args)
  message = str(info.value)
  assert '\n' not in message
  return message
