"""metrics.jsonl: nothing is read from it that is no step and numbers."""

import json

import pytest

from abstractinator.config import RunConfig
from abstractinator.runs import metric_lines, workdir
from tests.helpers.config_values import values


def write(folder, text):
  (folder / 'metrics.jsonl').write_text(text)
  return folder


@pytest.mark.parametrize(
  'line',
  [
    '',
    '{"step": 2, "a',
    '[1]',
    '{"a": 1}',
    '{"step": 1e999}',
    '{"step": "2"}',
    '{"step": true}',
    '{"step": -1}',
    '{"step": 2, "a": NaN}',
    '{"step": 2, "a": "1"}',
    '{"step": 2, "a": [1]}',
    '{"step": 2, "a": true}',
    pytest.param('[' * 5000, id='deep'),
    pytest.param('{"step": 2, "a": ' + '9' * 40 + '}', id='large'),
    pytest.param('{"step": ' + '9' * 5000 + '}', id='too large'),
    '\x00',
  ],
)
def test_a_damaged_line_is_named(tmp_path, line):
  write(tmp_path, f'{{"step": 1}}\n{line}\n')
  message = f'{tmp_path}/metrics.jsonl:2: got .*, allowed: a JSON object'
  with pytest.raises(ValueError, match=message):
    metric_lines.read(tmp_path)


def test_half_a_line_at_the_end_is_not_read(tmp_path):
  text = '{"step": 1, "a": 0.1}\n{"step": 2, "a": null}\n'
  expected = [{'step': 1, 'a': 0.1}, {'step': 2, 'a': None}]
  for rest in ('', '{"step": 3, "a'):
    assert metric_lines.read(write(tmp_path, text + rest)) == expected
    assert metric_lines.last_step(tmp_path) == 2
  metric_lines.drop_after(tmp_path, 1)
  assert metric_lines.read(tmp_path) == expected[:1]


def test_a_file_that_is_not_there(tmp_path):
  assert metric_lines.last_step(tmp_path) is None
  with pytest.raises(ValueError, match=r'metrics.jsonl: cannot be read \(No'):
    metric_lines.read(tmp_path)


def test_minutes_are_those_of_all_steps(tmp_path):
  lines = [
    {'step': 20, 'perf/step_seconds': 3.0},
    {'step': 20, 'eval/loss_total': 1.0},
    {'step': 50, 'perf/step_seconds': 2.0},
  ]
  write(tmp_path, '\n'.join(map(json.dumps, lines)))
  assert metric_lines.minutes(metric_lines.read(tmp_path)) == 2.0


def test_links_under_names_of_temporary_files_are_not_followed(tmp_path):
  kept = tmp_path / 'kept'
  kept.write_text('kept')
  for name in ('config.json.tmp', 'metrics.jsonl.tmp'):
    (tmp_path / name).symlink_to(kept)
  workdir.claim(str(tmp_path), RunConfig.from_dict(values()))
  metric_lines.drop_after(write(tmp_path, '{"step": 1}\n{"step": 2}\n'), 1)
  assert metric_lines.last_step(tmp_path) == 1
  assert kept.read_text() == 'kept'
