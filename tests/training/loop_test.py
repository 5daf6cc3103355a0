"""Faults from outside while a run trains."""

import json
import os

import pytest

from abstractinator.config import RunConfig
from abstractinator.training.loop import Run
from configs import entropy_pretrain, tiny


@pytest.fixture
def run(tmp_path):
  (tmp_path / 'train.txt').write_text('ab ' * 3000)
  (tmp_path / 'held_out.txt').write_text('xylophone, zebra; 1234. ' * 300)
  values = entropy_pretrain.get_config()
  (level,) = values.model.levels
  tiny.make_small(level, d_model=16)
  values.max_steps, values.num_epochs = 4, 1000.0
  values.log_interval = values.checkpoint_interval = 2
  values.eval_interval, values.final_eval_batches = 4, 1
  values.optimizer.warmup_steps = 1
  values.data.sequence_length, values.data.batch_size = 32, 8
  values.data.train = f'{tmp_path}/train.txt'
  values.data.validation = f'{tmp_path}/held_out.txt'
  config = RunConfig.from_dict(json.loads(values.to_json_best_effort()))
  return Run(config, str(tmp_path / 'run'))


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('train.txt', 'there is no checkpoint yet: the same command starts anew'),
    ('held_out.txt', 'the latest whole checkpoint is DIR/run/checkpoints/2: '),
  ],
)
def test_a_file_that_shrinks_is_told_in_a_line(run, name, hint, tmp_path):
  state = run.start()
  os.truncate(tmp_path / name, 100)
  with pytest.raises(OSError, match='has changed') as info:
    run.train(state)
  message = str(info.value)
  assert message.startswith(f'{tmp_path}/{name}: has changed: ')
  assert hint.replace('DIR', str(tmp_path)) in message
  assert '\n' not in message


def test_a_mistake_in_the_program_stays_one(run, monkeypatch):
  def fail(*args):
    raise ValueError('a mistake')

  state = run.start()
  monkeypatch.setattr(run, '_step', fail)
  with pytest.raises(ValueError, match='a mistake'):
    run.train(state)
