"""States of all dtypes, and checkpoints of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.runs import sharding
from abstractinator.runs.checkpointer import Checkpointer
from abstractinator.runs.state import TrainState

CONFIG = {'seed': 3, 'model': {'levels': [{'d_model': 8}], 'x': None}}


def make_state(seed=0):
  """Returns a state with leaves of all dtypes."""
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
  return TrainState(
    step=jnp.int32(7),
    params=params,
    collections={'vq': vq, 'calibration': {'threshold': jnp.float32(0.3)}},
    opt_state=optax.adamw(1e-3).init(params),
  )


def abstract(state):
  return jax.eval_shape(lambda: state)


def on_mesh(state, mesh):
  return jax.device_put(state, sharding.state_shardings(state, mesh))


def save(workdir, *steps):
  with Checkpointer(workdir, max_to_keep=9) as checkpointer:
    for step in steps:
      checkpointer.save(step, make_state(step), {'next_index': step}, CONFIG)


def steps_in(workdir):
  return sorted(int(x.name) for x in (workdir / 'checkpoints').iterdir())


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
  assert abstract(actual) == abstract(expected)


def error_of(function, *args):
  with pytest.raises(ValueError) as info:
    function(*args)
  message = str(info.value)
  assert '\n' not in message
  return message
