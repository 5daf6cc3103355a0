"""Losses do not depend on the implementation of ops."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from abstractinator.config import RunConfig
from abstractinator.training.program import make_program
from abstractinator.types import Batch
from configs import entropy_pretrain, tiny
from tests.helpers.jitted import init, jit

STEPS = 20


def losses(config, attention):
  """Losses of steps on random rows of two documents each."""
  values = config.get_config()
  tiny.make_small(values.model.levels[0], d_model=32)
  config = RunConfig.from_dict(json.loads(values.to_json_best_effort()))
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(
      config.model,
      implementation=dataclasses.replace(
        config.model.implementation, attention=attention
      ),
    ),
    data=dataclasses.replace(config.data, batch_size=2, sequence_length=96),
  )
  program = make_program(config, 'cpu', total_steps=10_000)
  state = init(program, jax.random.key(0))
  step = jit(program.step)
  rng = np.random.default_rng(0)
  found = []
  for _ in range(STEPS):
    ids_BS = rng.integers(97, 123, (2, 96)).astype(np.int32)
    document_BS = np.repeat([[0, 1], [0, 1]], 48, axis=1).astype(np.int32)
    batch = Batch(ids_BS, document_BS, np.arange(2, dtype=np.int32))
    state, metrics = step(state, batch)
    loss = metrics.whole['loss_total']
    found.append(loss.total / loss.count)
  return np.array(jax.device_get(found))


@pytest.mark.parametrize(
  'config',
  [
    # One stack of blocks; a whole level has three, and compiles for longer.
    entropy_pretrain,
    pytest.param(tiny, marks=pytest.mark.nightly),
  ],
  ids=lambda config: config.__name__,
)
def test_losses_do_not_depend_on_what_computes_attention(config):
  xla, kernel = losses(config, 'xla'), losses(config, 'pallas_interpret')
  assert len(set(xla)) == STEPS
  np.testing.assert_allclose(kernel, xla, rtol=0, atol=1e-5)
