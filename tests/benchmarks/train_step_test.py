import json
import re

import pytest

from abstractinator.benchmarks import profile, timing, train_step
from abstractinator.benchmarks.baseline import LEVEL
from abstractinator.benchmarks.train_step import Measurement


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """A level and products small enough to test with."""
  tiny = dict(num_layers=1, num_heads=2, ffn_dim=16)
  level = LEVEL.to_dict() | {'d_model': 16}
  for name in ('entropy_model', 'encoder', 'expander'):
    level[name] = level[name] | tiny
  monkeypatch.setattr(train_step, 'LEVEL', LEVEL.from_dict(level))
  monkeypatch.setattr(timing, '_SIZES', {'cpu': (64, 128)})


def test_baseline_has_the_size_of_the_original():
  stacks = (LEVEL.entropy_model, LEVEL.encoder, LEVEL.expander)
  assert [s.num_layers for s in stacks] == [2, 2, 4]
  assert {s.num_heads for s in stacks} == {4}
  assert {s.window for s in stacks} == {64}
  assert (LEVEL.d_model, LEVEL.quantizer.codebook_size) == (128, 512)


def test_measures_prints_and_writes(tmp_path, capsys):
  path = tmp_path / 'speed.jsonl'
  train_step.main(
    [
      '--sequence_lengths=32',
      '--tokens=64',
      '--steps=2',
      f'--json={path}',
      '--profile',
    ]
  )
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(m['sequence_length'], m['batch_size']) for m in lines] == [(32, 2)]
  for m in lines:
    assert m['bytes_per_second'] == pytest.approx(64 / m['median_seconds'])
    assert m['best_seconds'] <= m['median_seconds']
    share = m['flops'] / m['median_seconds'] / m['matmul_flops_per_second']
    assert m['matmul_share'] == pytest.approx(share)
    assert 0 < m['memory_bytes'] < m['peak_rss_bytes']
  out = capsys.readouterr().out
  assert train_step.table([Measurement(**m) for m in lines]) in out
  # Which of them take a share that is shown, so small a level leaves to chance.
  assert re.search(r' -> expander/block/\w+$', out, re.M)
  assert re.search(r' <- expander/block/\w+$', out, re.M)
  faster = lines[0] | {
    'bytes_per_second': 2.5 * lines[0]['bytes_per_second'],
    'memory_bytes': 3 * lines[0]['memory_bytes'],
  }
  table = train_step.table([Measurement(**m) for m in (lines[0], faster)])
  _, first, second, _ = table.splitlines()
  assert first.split()[-1] == '1.00'
  assert '    2.50 ' in second
  assert second.split()[-1] == '3.00'


@pytest.mark.parametrize('lengths', ['48', '0', '64,128', 'long'])
def test_lengths_that_do_not_divide_are_refused(lengths, capsys):
  with pytest.raises(SystemExit, match='2'):
    train_step.main([f'--sequence_lengths={lengths}', '--tokens=64'])
  assert 'allowed: divisors of' in capsys.readouterr().err


def test_timing_waits_and_counts():
  calls = []
  durations = timing.seconds(lambda: calls.append(0), 3)
  assert len(durations) == len(calls) == 3


@pytest.mark.parametrize(
  ('op_name', 'expected'),
  [
    (
      'jit(train_step)/transpose(jvp(AbstractinatorPyramid))/expander/block_2/ffn/down'
      '/dot_general',
      '<- expander/block/ffn',
    ),
    (
      'jit(train_step)/jvp(AbstractinatorPyramid)/Abstractinator.compress/compressor'
      '/entropy_model/stack/block_0/attention/q/dot_general',
      '-> compressor/entropy_model/stack/block/attention',
    ),
    (
      'jit(train_step)/transpose(jvp(AbstractinatorPyramid))/expander/block_1/ffn_norm'
      '/jvp(AbstractinatorPyramid)/expander/block_1/ffn_norm/checkpoint/mul',
      '<- expander/block/ffn_norm',
    ),
    (
      'jit(train_step)/jvp(AbstractinatorPyramid)/level_0/expander/embed/jit(_take)/gather',
      '-> expander/embed',
    ),
    ('jit(train_step)/transpose(jvp())/mul', '<- losses'),
    ('jit(train_step)/sqrt', '-- update'),
    ('', '-- unnamed'),
  ],
)
def test_operations_are_told_by_module(op_name, expected):
  assert profile.module_of(op_name) == expected
