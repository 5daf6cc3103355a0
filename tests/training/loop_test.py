"""Faults from outside while a run trains."""

import json
import os
import pathlib
import signal
from unittest import mock

import pytest

from abstractinator.config import RunConfig
from abstractinator.runs import checkpoint, metric_lines, processes
from abstractinator.runs.checkpointer import Checkpointer
from abstractinator.training.loop import Run
from abstractinator.training.progress import Progress
from configs import entropy_pretrain, tiny
from tests.helpers.many_processes import assert_same_state, metrics


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


def test_an_evaluation_is_broken_off_and_done_by_the_next_process(
  run, monkeypatch, tmp_path
):
  run.config.__dict__.update(eval_interval=2, eval_batches=2)
  run.config.__dict__.update(final_eval_batches=2)
  whole, run.workdir = run.workdir, str(tmp_path / 'whole')
  held_out = run.train(run.start())
  whole, run.workdir = run.workdir, whole

  def train_until_a_signal(at):
    evaluated = Progress.evaluated

    def raise_signal(self, step, done, total):
      evaluated(self, step, done, total)
      if (step, done) == (at, 0):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
      patch.setattr(Progress, 'evaluated', raise_signal)
      with pytest.raises(processes.Preempted, match=f'at step {at}, saved'):
        run.train(run.start())
    assert checkpoint.latest_step(run.workdir) == at
    assert metric_lines.last_step(run.workdir) == (at - 2 or None)

  train_until_a_signal(2)
  # The next process is stopped in the same evaluation, the one after it is
  # killed before it has another checkpoint.
  train_until_a_signal(2)
  with monkeypatch.context() as patch:
    patch.setattr(run, '_step', mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      run.train(run.start())
  assert metric_lines.last_step(run.workdir) == 2
  train_until_a_signal(4)
  assert run.train(run.start()) == held_out
  # Nothing is left to do, and nothing is done again.
  assert run.train(run.start()) is None
  assert metrics(run.workdir) == metrics(whole)
  assert_same_state(pathlib.Path(run.workdir), pathlib.Path(whole), 4)


def test_a_mistake_in_the_program_stays_one(run, monkeypatch):
  def fail(*args):
    raise ValueError('a mistake')

  state = run.start()
  monkeypatch.setattr(run, '_step', fail)
  with pytest.raises(ValueError, match='a mistake'):
    run.train(state)


def test_a_failed_save_is_noticed_at_the_next_line_of_the_log(run):
  saver = mock.Mock(check=mock.Mock(side_effect=OSError('disk full')))
  with pytest.raises(OSError, match='disk full'):
    run._interrupt({'log'}, 2, None, None, mock.Mock(), saver)


def test_metrics_of_two_intervals_may_come_before_a_checkpoint(run):
  """A run that is killed while it writes its first checkpoint leaves them."""
  os.makedirs(f'{run.workdir}/checkpoints/2.orbax-checkpoint-tmp')
  for step, is_refused in ((4, False), (5, True)):
    with open(f'{run.workdir}/metrics.jsonl', 'w') as file:
      file.write(json.dumps({'step': step}))
      file.write('\n')
    if is_refused:
      with pytest.raises(ValueError, match='no checkpoint to resume from'):
        run.start()
    else:
      assert int(run.start().step) == run._next_row == 0


def test_a_run_resumes_from_an_earlier_checkpoint_of_another(run, tmp_path):
  state, other = run.start(), str(tmp_path / 'other')
  with Checkpointer(other, 9) as saver:
    for step in (1, 2):
      position = {'next_row': 8 * step, 'metrics': None, **run._data_identity}
      saver.save(step, state, position, run.config.to_dict())
  for step, next_row in ((1, 8), (None, 16)):
    run.start(other, step)
    assert run._next_row == next_row
  with pytest.raises(ValueError, match=r"OTHER: item data .* no 'metrics'"):
    run._go_on_at({'next_row': 8}, 'OTHER')
