import dataclasses
import json
import types

import pytest

from abstractinator.benchmarks import compare
from abstractinator.cli import config_file
from abstractinator.objective.by_level import ByLevel

TEXT = b'A hierarchy of codes, next to a flat model of bytes. '
SMALL = ('data.sequence_length=32', 'data.batch_size=2')


@pytest.fixture
def settings(tmp_path):
  (tmp_path / 'train.txt').write_bytes(8 * TEXT)
  (tmp_path / 'held_out.md').write_bytes(TEXT)
  return [
    f'data.train={tmp_path}/*.txt',
    f'data.validation={tmp_path}/*.md',
    *SMALL,
  ]


def arguments(tmp_path, settings):
  return [f'--runs={tmp_path}/runs', *(f'--set={x}' for x in settings)]


@pytest.fixture
def untrained(monkeypatch):
  """Replaces training and measuring; the total of seed n is n + 2, or n + 3."""
  runs = []

  def train(config, root, name):
    runs.append((name, config.seed))
    path = root / f'{name}-{config.seed}'
    path.mkdir(parents=True)
    line = {'step': 30, 'perf/step_seconds': 2.0}
    (path / 'metrics.jsonl').write_text(json.dumps(line))
    return path

  def costs(path, max_documents, decode):
    assert (max_documents, decode) == (1, False)
    name, seed = path.name.split('-')
    return {'total': int(seed) + {'flat': 2.0, 'tiny': 3.0}[name]}

  def flat_config(config):
    return 'flat', dataclasses.replace(config, objective='entropy_model')

  monkeypatch.setattr(compare, 'train', train)
  monkeypatch.setattr(compare, 'costs', costs)
  monkeypatch.setattr(compare, 'flat_config', flat_config)
  return runs


def test_each_seed_stands_beside_its_flat_model(
  tmp_path, settings, untrained, capsys
):
  path = tmp_path / 'rows.jsonl'
  argv = ['--seeds=2', '--no_decode', '--max_documents=1', f'--json={path}']
  compare.main(['tiny', *argv, *arguments(tmp_path, settings)])
  assert untrained == [(n, s) for s in (0, 1) for n in ('flat', 'tiny')]
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  flat, tiny, _, second, *summaries, xz, _, _ = rows
  assert (tiny['over flat'], second['over flat']) == (3 / 2, 4 / 3)
  assert tiny['FLOPs over flat'] == tiny['kFLOP/byte'] / flat['kFLOP/byte'] > 2
  assert tiny['parameters'] == 82304 > flat['parameters']
  assert tiny['minutes'] == 1.0
  found = [(x['model'], x['seed'], x['total']) for x in summaries]
  assert found == [
    ('flat', 'mean', 2.5),
    ('flat', 'spread', 1.0),
    ('tiny', 'mean', 3.5),
    ('tiny', 'spread', 1.0),
  ]
  assert xz['by'] == 'xz -9e'
  assert ' 1.333 |' in capsys.readouterr().out


def test_a_flat_model_of_several_hierarchies_has_one_row(
  tmp_path, settings, untrained, monkeypatch
):
  _, flat = compare.flat_config(config_file.load('tiny', settings))
  monkeypatch.setattr(compare, 'flat_config', lambda config: ('flat', flat))
  path = tmp_path / 'rows.jsonl'
  argv = ['--no_decode', '--max_documents=1', f'--json={path}']
  names = ['tiny', 'configs/tiny.py']
  monkeypatch.setattr(
    compare, 'measured', lambda name, config, **_: row_of(name)
  )
  compare.main([*names, *argv, *arguments(tmp_path, settings)])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row.get('model') for row in rows[:4]] == ['flat', *names, None]


def row_of(name):
  return {'model': name, 'total': 2.0, 'kFLOP/byte': 3}


def test_costs_are_those_of_all_levels(monkeypatch, tmp_path):
  def level(number):
    names = (
      'entropy_model_bits_per_byte',
      'expander_bits_per_byte',
      'end_bits_per_byte',
      'bytes_per_segment',
      'live_code_fraction',
    )
    return {name: number * 10.0**i for i, name in enumerate(names)}

  whole = {'code_bits_per_byte': 7.0, 'total_bits_per_byte': 8.0}
  whole |= {'free_running_byte_accuracy': 0.5}
  found = ByLevel((level(1), level(2)), whole)
  run = types.SimpleNamespace(config=config_file.load('tiny'), has_codes=True)
  monkeypatch.setattr(compare, 'open_run', lambda path: run)
  monkeypatch.setattr(compare, 'evaluate', lambda *args, decode: found)
  costs = compare.costs(tmp_path, 1, True)
  assert costs == {
    'entropy model': 1.0,
    'codes': 7.0,
    'bytes given codes': 30.0,
    'ends': 300.0,
    'total': 8.0,
    'bytes/code': 2000.0,
    'live codes': 20000.0,
    'bytes right': 0.5,
  }
  del whole['free_running_byte_accuracy']
  assert 'bytes right' not in compare.costs(tmp_path, 1, False)
  run.has_codes = False
  assert compare.costs(tmp_path, 1, True) == {'total': 1.0}


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['none'], "config: got 'none'"),
    (['tiny', 'entropy_frozen', '--set=data.none=1'], 'data.none'),
    (['entropy_pretrain'], "objective: got 'entropy_model'"),
  ],
)
def test_what_cannot_be_compared_is_refused(argv, message, tmp_path, capsys):
  with pytest.raises(SystemExit, match='2'):
    compare.main([*argv, f'--runs={tmp_path}'])
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_configs_of_other_data_are_refused(monkeypatch, capsys):
  load = config_file.load

  def edited(name, overrides):
    return load('tiny', [f'data.validation_fraction=0.{len(name)}'])

  monkeypatch.setattr(compare.config_file, 'load', edited)
  with pytest.raises(SystemExit, match='2'):
    compare.main(['a', 'bc'])
  assert 'allowed: configs of the same data' in capsys.readouterr().err


@pytest.mark.nightly
def test_runs_that_are_done_are_not_trained_again(tmp_path, settings, capsys):
  settings += ['max_steps=2', 'optimizer.warmup_steps=1']
  path = tmp_path / 'rows.jsonl'
  argv = ['tiny', f'--json={path}', *arguments(tmp_path, settings)]
  compare.main(argv)
  files = sorted(x for x in (tmp_path / 'runs').rglob('*') if x.is_file())
  assert len(list((tmp_path / 'runs').iterdir())) == 2
  since = {x: x.stat().st_mtime_ns for x in files if 'checkpoints' in x.parts}
  compare.main(argv)
  assert since == {x: x.stat().st_mtime_ns for x in since}
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert rows[:5] == rows[5:]
  tiny = rows[1]
  assert 0 <= tiny['bytes right'] < 1
  parts = tiny['codes'] + tiny['bytes given codes'] + tiny['ends']
  assert tiny['total'] == pytest.approx(parts)
  settings[-2] = 'seed=1'
  argv = ['tiny', f'--json={path}', *arguments(tmp_path, settings)]
  compare.main(argv)
  assert len(list((tmp_path / 'runs').iterdir())) == 4
