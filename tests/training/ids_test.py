"""Training on ids that are not bytes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import RunConfig
from abstractinator.objective.eval_step import eval_step
from abstractinator.runs.load import read_trained
from abstractinator.runs.state import variables_of
from abstractinator.training.program import make_program
from abstractinator.types import Batch, Special
from tests.helpers import tiny_run

VOCAB_SIZE = 600


def config(**changes):
  values = tiny_run.config().to_dict()
  values['data'] |= dict(vocab_size=VOCAB_SIZE, train='ids.npy')
  values['data'] |= changes
  return RunConfig.from_dict(values)


def batch(size):
  ids_BS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, size))
  ids_BS[:, -1] = VOCAB_SIZE + Special.EOS
  document_BS = np.zeros((2, size), np.int32)
  return Batch(
    jnp.asarray(ids_BS, jnp.int32), document_BS, np.arange(2, dtype=np.int32)
  )


@pytest.mark.parametrize('name', ['all', 'entropy_model'])
def test_every_id_counts(name):
  values = config().to_dict() | {'objective': name}
  run = RunConfig.from_dict(values)
  program = make_program(run, 'cpu', 100)
  state = tiny_run.random_state(run, 0)
  score = functools.partial(
    eval_step,
    model=program.model,
    weights=run.loss,
    objective=program.objective,
  )
  metrics = jax.jit(score)(variables_of(state), batch(32))
  mean = metrics.levels[0]['entropy_model_bits_per_byte']
  # The two EOS do not count.
  assert mean.count == 2 * 31
  # Random parameters guess among all ids; bytes would take 8 bits at most.
  assert mean.total / mean.count > np.log2(VOCAB_SIZE) - 0.5


def test_wrong_settings():
  with pytest.raises(ValueError, match=r'data\.vocab_size: got 600'):
    config(train='')
  values = config().to_dict()
  values['model']['levels'][0]['segmentation']['rule'] = 'space'
  with pytest.raises(ValueError, match=r'segmentation\.rule: got .space'):
    RunConfig.from_dict(values)


def test_what_reads_a_run_knows_bytes_only(tmp_path):
  tiny_run.save(tmp_path, config())
  with pytest.raises(ValueError, match=r'data\.vocab_size: got 600'):
    read_trained(str(tmp_path))
