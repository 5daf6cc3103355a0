"""Messages of a run before its first step."""

import dataclasses

from abstractinator.runs import allocator
from abstractinator.training.loop import Run
from configs import tiny
from tests.helpers import many_processes, tiny_stages


def make_run(tmp_path, **optimizer):
  corpus = many_processes.write_corpus(tmp_path)
  config = tiny_stages.small(
    tiny.get_config(),
    corpus,
    lambda values: values.optimizer.update(**optimizer),
  )
  return Run(config, str(tmp_path / 'run'))


def test_a_run_says_what_it_is_and_that_it_compiles(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv('GLIBC_TUNABLES', allocator._TUNABLES)
  run = make_run(tmp_path, warmup_steps=50)
  run._reporter(run.start()).writer.close()
  lines = capsys.readouterr().err.splitlines()
  first, ops, data, steps, memory, warmup, last = lines
  assert first.startswith(f'{tmp_path}/run: ')
  assert 'parameters in float32 on 8 device(s) of kind cpu' in first
  assert ops.startswith('ops: attention xla, ')
  assert 'held out' in data
  assert steps == 'steps 0 to 6'
  assert '0.9 GiB' in memory
  assert allocator.OFF in memory
  assert warmup == (
    'optimizer.warmup_steps: shortened from 50 to 3 of 6 steps; raise max_steps'
  )
  assert last == 'compiling the training step'
  # Of more epochs the run would be longer.
  run.config.__dict__.update(max_steps=99)
  run._reporter(run.start()).writer.close()
  *_, warmup, last = capsys.readouterr().err.splitlines()
  assert warmup.endswith(' 3 of 6 steps; raise num_epochs')
  # A run of several levels says the same of its curriculum.
  loss = dataclasses.replace(run.config.loss, curriculum_steps=9)
  run.config = dataclasses.replace(run.config, loss=loss)
  assert list(run._shortened())[1:] == [
    'loss.curriculum_steps: shortened from 9 to 0 of 6 steps; raise num_epochs'
  ]


def test_the_batches_of_evaluations_to_come(tmp_path):
  run = make_run(tmp_path, warmup_steps=0)
  rows = len(run._validation_rows)
  assert rows > 3 * 8
  run.config.__dict__.update(
    eval_interval=2, eval_batches=3, final_eval_batches=None
  )
  last = -(-rows // 8)
  found = [run._batches_after(step) for step in range(7)]
  # Evaluations come after steps 2, 4 and 6, the last one of all rows.
  assert found == [6 + last, 6 + last, 3 + last, 3 + last, last, last, 0]
