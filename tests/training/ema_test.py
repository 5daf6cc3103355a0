"""Moving average of the parameters, in a run with Muon on a whole mesh."""

import functools
import json

import jax
import numpy as np
import pytest

from abstractinator.config import RunConfig
from abstractinator.runs import checkpoint
from abstractinator.runs.load import read_trained
from abstractinator.runs.state import averaged_variables_of
from abstractinator.training.loop import Run
from abstractinator.training.program import make_program
from abstractinator.types import Batch
from configs import entropy_pretrain, tiny
from tests.helpers import many_processes
from tests.helpers.jitted import init


def make_config(**data) -> RunConfig:
  values = entropy_pretrain.get_config()
  (level,) = values.model.levels
  tiny.make_small(level, d_model=16)
  values.max_steps, values.num_epochs = 4, 100.0
  values.log_interval = values.checkpoint_interval = values.eval_interval = 2
  values.eval_batches = values.final_eval_batches = 1
  values.data.sequence_length, values.data.batch_size = 32, 8
  values.data.update(data)
  values.optimizer.update(kind='muon', ema_decay=0.75, warmup_steps=0)
  values.mesh.update(data=2, fsdp=2, tensor=2)
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def test_the_average_follows_the_parameters():
  program = make_program(make_config(), 'cpu', total_steps=4)
  ids = np.arange(8 * 32, dtype=np.int32).reshape(8, 32) % 256
  batch = Batch(ids, np.zeros_like(ids), np.arange(8, dtype=np.int32))
  state = init(program, jax.random.key(0))
  expected = jax.device_get(state.params)
  step = jax.jit(program.step)
  for _ in range(3):
    state, _ = step(state, batch)
    expected = jax.tree.map(
      lambda ema, x: 0.75 * ema + 0.25 * x,
      expected,
      jax.device_get(state.params),
    )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, state.ema, expected)


@pytest.mark.nightly
def test_evaluation_and_commands_use_the_average(tmp_path):
  corpus = many_processes.write_corpus(tmp_path)
  workdir = str(tmp_path / 'run')
  run = Run(make_config(train=f'{corpus}/*.txt'), workdir)
  trained = run.train(run.start())
  state = checkpoint.restore(workdir, run._abstract).state
  found = run._held_out.evaluate(averaged_variables_of(state), 1)
  loss = found.summary.whole['loss_total']
  assert trained.whole['loss_total'] == pytest.approx(loss)
  raw = run._held_out.evaluate({'params': state.params, **state.collections}, 1)
  assert raw.summary.whole['loss_total'] != loss
  # Muon's momenta are sharded as their parameters are.
  compressor = state.params['level_0']['compressor']
  kernel = compressor['entropy_model']['stack']['block_0']
  kernel = kernel['ffn']['down']['kernel']
  assert kernel.sharding.spec == jax.sharding.PartitionSpec('tensor', 'fsdp')
  momenta = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    if 'ffn' in str(path) and 'down' in str(path)
  ]
  assert len(momenta) == 1
  assert momenta[0].sharding == kernel.sharding
  _, variables = read_trained(workdir)
  jax.tree.map(np.testing.assert_array_equal, variables['params'], state.ema)
