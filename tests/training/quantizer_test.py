"""Training of a level with every kind of quantizer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import RunConfig
from abstractinator.training.program import make_program
from abstractinator.types import EOS_ID, Batch
from configs import tiny
from tests.helpers.jitted import init

STEPS, ROWS, SIZE = 30, 4, 64
TEXT = b'the rain in spain stays mainly in the plain; so they say. '


def batches():
  rng = np.random.default_rng(0)
  text = np.frombuffer(TEXT * 4, np.uint8).astype(np.int32)
  for step in range(STEPS):
    starts = rng.integers(0, len(TEXT), ROWS)
    ids = np.stack([text[s : s + SIZE] for s in starts])
    ids[:, -1] = EOS_ID
    row = np.arange(ROWS, dtype=np.int32) + ROWS * step
    yield Batch(*map(jnp.asarray, (ids, np.zeros_like(ids), row)))


@pytest.mark.parametrize(
  'changes',
  [
    dict(kind='vq', cosine=True, start='kmeans'),
    *(
      pytest.param(changes, marks=pytest.mark.nightly)
      for changes in (
        dict(kind='vq'),
        # `train_test` trains it in every run.
        dict(kind='rvq', depth=3, codebook_size=16),
        dict(kind='rvq', codebook='gradient'),
        dict(kind='fsq', levels=(5, 4, 3)),
      )
    ),
  ],
  ids=str,
)
def test_thirty_steps_lower_the_loss_of_the_expander(changes):
  values = tiny.get_config()
  values.data.sequence_length = SIZE
  values.data.batch_size = ROWS
  (level,) = values.model.levels
  for name, value in changes.items():
    level.quantizer[name] = value
  config = RunConfig.from_dict(json.loads(values.to_json_best_effort()))
  program = make_program(config, 'cpu', STEPS)
  state = init(program, jax.random.key(0))
  step = jax.jit(program.step, donate_argnums=0)
  values = []
  for batch in batches():
    state, found = step(state, batch)
    values.append(
      {k: float(v.total.sum()) for k, v in found.flattened().items()}
    )
    assert np.isfinite(values[-1]['gradient_norm'])
  loss = [v['loss_expander'] for v in values]
  assert loss[-1] < 0.75 * loss[0]
  assert ('vq' in state.collections) == (
    changes['kind'] != 'fsq' and changes.get('codebook') != 'gradient'
  )
  learns = changes.get('codebook') == 'gradient'
  assert (values[-1]['loss_codebook'] > 0) == learns
