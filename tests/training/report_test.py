"""Text at the end of a run, and at evaluations."""

import dataclasses
import json
import sys

import pytest

from abstractinator.cli import config_file
from abstractinator.config import RunConfig
from abstractinator.objective.metrics import Summary
from abstractinator.training import report
from configs import tiny
from tests.helpers import tiny_run

LEVEL = {
  'entropy_model_bits_per_byte': 2.18149,
  'expander_bits_per_byte': 1.5,
  'end_bits_per_byte': 0.25,
  'bytes_per_segment': 4.5,
  'live_code_fraction': 0.5,
  'teacher_forced_byte_accuracy': 0.75,
  'loss_total': 9.0,
}
WHOLE = {'free_running_byte_accuracy': 0.43211}
TOP = {
  'total_bits_per_byte': 3.5,
  'top_lm_code_bits_per_byte': 1.25,
  'top_lm_end_bits_per_byte': 0.125,
}


def config(**edits):
  values = tiny.get_config()
  values.update(edits)
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def closing(summary=None, vocab_size=None, **edits):
  run = config(**edits)
  if vocab_size:
    data = dataclasses.replace(run.data)
    object.__setattr__(data, 'vocab_size', vocab_size)
    run = dataclasses.replace(run)
    object.__setattr__(run, 'data', data)
  return report.closing('RUN', run, 7, summary).splitlines()


def test_closing_has_one_figure_a_line_with_its_unit():
  lines = closing(Summary((LEVEL,), WHOLE))
  first, second, *figures = lines[: lines.index('next:')]
  assert first == 'run RUN: 7 steps done'
  assert second == 'on held-out documents:'
  assert [line.split('  ')[1] for line in figures] == [
    'bytes right, from codes alone',
    'entropy model',
    'expander, given codes',
    'ends of segments',
    'bytes right, teacher-forced',
    'length of segments',
    'codes in use',
  ]
  assert [line.split('  ')[-1].strip() for line in figures] == [
    '43.21%',
    '2.181 bits/byte',
    '1.500 bits/byte',
    '0.250 bits/byte',
    '75.00%',
    '4.50 bytes/segment',
    '50.00%',
  ]
  assert all(len(line) < 80 for line in lines)


def test_a_run_without_a_top_lm_continues_texts_by_its_entropy_model():
  hint = "generate RUN --prompt='TEXT'"
  (without,) = [line for line in closing() if 'generate' in line]
  assert without.endswith(f'{hint} --entropy_model_only')
  found = report.next_commands('RUN', config_file.load('default', []))
  assert f'abstractinator {hint}' in found


def test_hints_name_what_the_run_can_do():
  text = '\n'.join(closing(Summary((LEVEL,), WHOLE)))
  for command in ('view RUN', 'reconstruct RUN', 'generate RUN'):
    assert f'abstractinator {command}' in text
  for other in (
    closing(objective='entropy_model'),
    closing(vocab_size=1000),
  ):
    assert 'nothing was left to do' in other[1]
    assert 'tensorboard --logdir=RUN/tensorboard' in '\n'.join(other)
    for command in ('view', 'reconstruct', 'generate', 'segment'):
      assert f'abstractinator {command}' not in '\n'.join(other)


@pytest.mark.parametrize(
  ('summary', 'line'),
  [
    (
      Summary((LEVEL,), WHOLE),
      'entropy model 2.181, expander 1.500, ends 0.250 bits/byte, 43.21% right',
    ),
    (
      Summary((LEVEL, LEVEL), WHOLE | TOP),
      'total 3.500, codes 1.250, ends 0.125 bits/byte, 43.21% right',
    ),
    (
      Summary(
        (),
        {'top_lm_code_bits_per_code': 4.5, 'top_lm_code_accuracy': 0.125},
      ),
      'top LM 4.500 bits/code, 12.50% right',
    ),
  ],
)
def test_headline_has_what_matters_most(summary, line):
  assert report.headline(summary) == line


@pytest.mark.parametrize(
  ('steps', 'parts'),
  [
    ((), ('there is no earlier checkpoint', '--config=resume:DIR')),
    ((10,), ('there is no earlier checkpoint', '--config=resume:DIR')),
    (
      (9, 10, 20),
      (
        'from the latest checkpoint, 20, the same step fails again',
        '--resume_from=DIR --resume_step=10 ',
      ),
    ),
  ],
)
def test_after_divergence(steps, parts, tmp_path):
  for step in steps:
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  config = tiny_run.config()
  line = report.after_divergence(str(tmp_path), config)
  rate = config.optimizer.learning_rate / 2
  assert line.endswith(f'--config.optimizer.learning_rate={rate:g}')
  for part in parts:
    assert part.replace('DIR', str(tmp_path)) in line


def test_a_command_is_named_as_it_was_started(monkeypatch):
  for started, command in (
    ('../train.py', 'python ../train.py'),
    ('/usr/bin/abstractinator', 'abstractinator train'),
  ):
    monkeypatch.setattr(sys, 'argv', [started])
    assert report.command() == command


def test_after_a_fault(tmp_path):
  assert 'no checkpoint yet' in report.after_fault(str(tmp_path))
  for step in ('9', '10', '20.orbax-checkpoint-tmp'):
    (tmp_path / 'checkpoints' / step).mkdir(parents=True)
  line = report.after_fault(str(tmp_path))
  assert line.startswith(f'the latest whole checkpoint is {tmp_path}')
  assert '/checkpoints/10: ' in line
