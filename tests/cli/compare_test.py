"""`abstractinator compare`: figures side by side, settings that differ."""

import csv
import json

import pytest

from abstractinator.cli import config_file
from abstractinator.cli.main import main
from abstractinator.runs import metric_lines, workdir

ONE = {
  'entropy_model_bits_per_byte': 2.0,
  'free_running_byte_accuracy': 0.25,
  'loss_total': None,
}
TWO = {
  'level0/entropy_model_bits_per_byte': 1.5,
  'level0/bytes_per_segment': None,
  'level1/bytes_per_segment': 8.25,
  'total_bits_per_byte': 2.5,
}
# The last line is of a step after the last evaluation.
LINES = [
  {'step': 10, 'perf/step_seconds': 6.0},
  {'step': 10, 'eval/entropy_model_bits_per_byte': 9.0},
  {'step': 2000, 'perf/step_seconds': 3.0},
  {'step': 2000, 'health/codes_ignored': 0.0},
  {'step': 2010, 'perf/step_seconds': 3.0},
]


def write_run(path, name, settings, figures):
  workdir.claim(str(path), config_file.load(name, settings))
  evaluated = {'step': 2000} | {f'eval/{k}': x for k, x in figures.items()}
  lines = [*LINES[:3], evaluated, *LINES[3:]]
  text = ''.join(map(metric_lines.to_text, lines))
  (path / 'metrics.jsonl').write_text(text)


@pytest.fixture
def runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_run(tmp_path / 'a', 'tiny', ['seed=7'], ONE)
  write_run(tmp_path / 'b', 'tiny_2level', ['optimizer.kind=muon'], TWO)
  return tmp_path


def test_figures_and_settings_stand_side_by_side(runs, capsys):
  assert main(['compare', 'a', 'b']) == 0
  out, err = capsys.readouterr()
  assert err == ''
  figures, settings = out.split('\n\nsettings that differ:\n')
  assert figures.splitlines() == [
    '                                    a           b',
    'step                            2,000       2,000',
    'time of training                100.5       100.5  minutes',
    'total                               -       2.500  bits/byte',
    'bytes right, from codes alone  25.00%           -',
    'entropy model                   2.000       1.500  bits/byte',
    'length of segments                  -  not finite',
    'level1: length of segments          -        8.25  bytes/segment',
  ]
  found = dict(line.split(maxsplit=1) for line in settings.splitlines())
  assert found['seed'].split() == ['7', '0']
  assert found['optimizer.kind'].split() == ['"adamw"', '"muon"']
  assert found['model.levels[1]'].split() == ['-', '{...}']
  assert found['model.top_lm'].split() == ['null', '{...}']
  assert 'optimizer.beta1' not in found


def test_the_table_has_all_figures_of_each_run(runs, capsys):
  assert main(['compare', 'a', 'b', '--csv=out.csv', '--json']) == 0
  of_json = json.loads(capsys.readouterr().out)
  assert [row['run'] for row in of_json] == ['a', 'b']
  with open('out.csv', newline='') as file:
    a, b = csv.DictReader(file)
  assert (a['run'], a['step'], a['minutes']) == ('a', '2000', '100.5')
  assert (a['config.seed'], b['config.seed']) == ('7', '0')
  assert (a['config.optimizer.kind'], b['level1/bytes_per_segment']) == (
    'adamw',
    '8.25',
  )
  # A figure that is not finite is null; one that is not there is empty.
  assert (a['loss_total'], b['loss_total']) == ('null', '')
  assert a['config.model.levels[1]'] == ''
  level = of_json[1]['config.model.levels[1]']
  assert json.loads(b['config.model.levels[1]']) == level
  assert 'config.model.levels[1]' not in of_json[0]
  for row, of_csv in zip(of_json, (a, b), strict=True):
    assert {k for k, x in of_csv.items() if x} == set(row)
  assert main(['compare', 'a', 'b', '--csv=out.csv']) == 2
  assert 'out.csv: exists, allowed: ' in capsys.readouterr().err


def test_runs_of_equal_settings(runs, capsys):
  write_run(runs / 'c', 'tiny', ['seed=7'], ONE)
  assert main(['compare', 'a', 'c']) == 0
  assert capsys.readouterr().out.endswith('settings that differ:\nnone\n')


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ('a', 'RUN: got a, allowed: at least two different ones'),
    ('a b a', 'RUN: got a b a, allowed: at least two different ones'),
    ('a none', 'none: has no config.json, allowed: the directory of a run'),
    ('a cut', 'cut/config.json: cannot be read as JSON'),
    ('a renamed', 'renamed/config.json: seeds: unknown setting'),
    ('a spoilt', "spoilt/metrics.jsonl:2: got 'not JSON', allowed: a JSON"),
    ('a bare', 'bare/metrics.jsonl: cannot be read (No such file'),
    ('a early', 'early/metrics.jsonl: has no held-out figures, allowed: a run'),
    ('a b --csv=none/x.csv', "got no directory 'none', allowed: a path in"),
  ],
)
def test_damaged_runs_are_named_in_a_line(args, message, runs, capsys):
  config = (runs / 'a' / 'config.json').read_text()
  metrics = (runs / 'a' / 'metrics.jsonl').read_text().splitlines()
  for name, text, lines in (
    ('cut', config[:99], metrics),
    ('renamed', config.replace('"seed"', '"seeds"'), metrics),
    ('spoilt', config, [metrics[0], 'not JSON', *metrics[1:]]),
    ('bare', config, None),
    ('early', config, metrics[:1]),
  ):
    (runs / name).mkdir()
    (runs / name / 'config.json').write_text(text)
    if lines is not None:
      (runs / name / 'metrics.jsonl').write_text('\n'.join(lines))
  assert main(['compare', *args.split()]) == 2
  out, err = capsys.readouterr()
  assert out == ''
  (line,) = err.splitlines()
  assert line.startswith('abstractinator: error: ')
  assert message in line
