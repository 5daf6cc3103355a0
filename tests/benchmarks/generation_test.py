import dataclasses
import json

import numpy as np
import pytest

from abstractinator import inference
from abstractinator.benchmarks import generation
from abstractinator.cli import config_file
from abstractinator.decoding.pyramid import make_model
from abstractinator.runs.load import read_trained
from tests.helpers import tiny_run

TINY = ['--config=tiny', '--set', 'data.sequence_length=64']


@pytest.mark.nightly
def test_prompts_are_continued(tmp_path):
  path = tmp_path / 'rows.jsonl'
  sizes = ['--contexts', '8', '--batches', '1', '2', '--num_calls=1']
  generation.main(['continue', *TINY, *sizes, f'--json={path}'])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(row['rows'], row['context']) for row in rows] == [(1, 8), (2, 8)]
  for row in rows:
    assert 1 <= row['bytes/segment'] <= 16
    for name in ('bytes/s', 'CPU-ms/byte', 'prompt, CPU-ms', 'of roofline'):
      assert row[name] > 0


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
@pytest.mark.parametrize(('context', 'share'), [('segment', 16), ('window', 1)])
def test_a_byte_reads_the_expander_and_its_part_of_the_top_lm(
  dtype, size, context, share
):
  settings = (
    f'model.levels[0].expander.context={context}',
    f'model.dtype={dtype}',
  )
  model = make_model(config_file.load('tiny', settings), 'cpu')
  params = {
    'level_0': {'expander': {'a': np.ones((8, 10))}, 'compressor': np.ones(7)},
    'top_lm': {'b': np.ones(60)},
  }
  found = generation.bytes_read(model, {'params': params}, length=3.0)
  assert found == pytest.approx(size * (80 / share + 60 / 3))


def test_random_codes_decode_alike_both_ways(capsys):
  generation.main(['decode', *TINY, '--bytes=32', '--repeats=1'])
  *_, side_by_side, one_by_one = capsys.readouterr().out.splitlines()
  assert side_by_side.startswith('| side_by_side |')
  assert one_by_one.startswith('| one_by_one ')


@pytest.mark.parametrize(
  'lookback', [pytest.param(0, marks=pytest.mark.nightly), 1]
)
def test_codes_of_a_text_decode_once_for_each_context(tmp_path, lookback):
  config = tiny_run.config(lookback=lookback)
  run, text, path = (tmp_path / name for name in ('run', 'text', 'rows.jsonl'))
  tiny_run.save(run, config)
  text.write_bytes(b'to be or not to be ' * 8)
  argv = ['decode', f'--run={run}', f'--text={text}', f'--json={path}']
  generation.main([*argv, '--bytes=76', '--repeats=1'])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  side_by_side, one_by_one = rows
  # The whole text is one row, whatever the length of the run's rows.
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, sequence_length=77)
  )
  trained = inference.TrainedPyramid(config, read_trained(str(run))[1])
  codes = trained.encode(text.read_bytes()[76:152], level=0).codes_N.tolist()
  assert one_by_one['segments'] == len(codes) > 32 // 2
  before = [None] * lookback + codes
  distinct = set(zip(before, codes, strict=False)) if lookback else set(codes)
  assert side_by_side['segments'] == len(distinct) < len(codes)
  assert one_by_one['bytes'] == one_by_one['ids'] == one_by_one['steps']
  assert side_by_side['bytes'] == one_by_one['bytes'] > side_by_side['ids']
  # There are more lanes than segments.
  assert side_by_side['steps'] <= config.model.levels[0].segmentation.max_length


def test_ways_that_decode_to_other_bytes_are_not_timed(monkeypatch):
  decode = generation.decode_distinct

  def wrong(*args):
    ids_BPL, length_BP = decode(*args)
    return ids_BPL.at[0, 3, 0].add(1), length_BP

  monkeypatch.setattr(generation, 'decode_distinct', wrong)
  with pytest.raises(AssertionError, match='Mismatched elements: 1 /'):
    generation.main(['decode', *TINY, '--bytes=32', '--repeats=1'])


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['decode', '--run=x'], '--run and --text: allowed: both, to decode'),
    (['continue', '--run=x', '--text=y'], 'allowed: both, to decode'),
    (
      ['continue', '--config=tiny_2level'],
      '--config: got 2 levels, allowed: 1',
    ),
    (
      ['decode', *TINY, '--set', 'model.dtype=bfloat16'],
      "model.dtype: got 'bfloat16', allowed: float32",
    ),
  ],
)
def test_arguments_are_checked(argv, message, capsys):
  with pytest.raises(SystemExit, match='2'):
    generation.main(argv)
  assert message in capsys.readouterr().err
