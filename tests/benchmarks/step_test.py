import json

import jax
import numpy as np
import pytest

from abstractinator.benchmarks import step
from abstractinator.cli import config_file

TINY = ['data.batch_size=2', 'data.sequence_length=32']


@pytest.mark.nightly
def test_rows_are_each_config_varied_and_the_plain_transformer(tmp_path):
  path = tmp_path / 'rows.jsonl'
  argv = ['tiny', '--steps=1', f'--json={path}']
  for setting in TINY:
    argv += ['--set', setting]
  step.main([*argv, '--vary', 'data.sequence_length=16', 'data.batch_size=4'])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  varied = 'tiny, data.sequence_length=16, data.batch_size=4'
  assert [row['config'] for row in rows] == [
    'tiny',
    varied,
    'plain transformer',
  ]
  assert [(row['B'], row['S']) for row in rows] == [(2, 32), (4, 16), (2, 32)]
  for row in rows:
    assert row['kB/s'] == pytest.approx(64 / row['step ms'])
    ratio = row['kB/s'] / rows[0]['kB/s'], row['TFLOP/s'] / rows[2]['TFLOP/s']
    assert (row['x'], row['of plain']) == pytest.approx(ratio)
    assert row['GiB'] > 0 < row['of matmul'] < 1
  flops = step.model_flops(config_file.load('tiny', TINY))
  assert rows[0]['TFLOP/s'] == pytest.approx(flops / rows[0]['step ms'] / 1e9)


def test_the_plain_transformer_has_the_flops_of_the_run_and_learns():
  config = config_file.load('tiny', TINY)
  plain = step.compile_plain(config)
  # Four bytes of products a parameter of a block, and as many for scores.
  width, length, num_bytes = config.model.levels[0].d_model, 32, 64
  of_layer = 6 * num_bytes * (12 * width**2 + 2 * length * width)
  assert abs(plain.flops - step.model_flops(config)) <= of_layer / 2
  assert (plain.flops - 6 * num_bytes * width * 256) % of_layer == 0
  losses = [float(plain.take()) for _ in range(20)]
  assert losses[-1] < losses[0] - 0.1


def test_the_plain_transformer_sees_no_later_byte():
  model = step.PlainTransformer(8, 2, 'float32', num_layers=2)
  ids = np.arange(12).reshape(1, 12)
  params = model.init(jax.random.key(0), ids)
  changed = ids.copy()
  changed[0, 7] = 99
  logits, after = (model.apply(params, x) for x in (ids, changed))
  np.testing.assert_array_equal(logits[:, :7], after[:, :7])
  assert np.abs(logits[:, 7:] - after[:, 7:]).max() > 1e-3


def test_the_default_is_of_the_size_at_which_the_original_was_timed():
  config = config_file.load(step.DEFAULT)
  (level,) = config.model.levels
  stacks = (level.entropy_model, level.encoder, level.expander)
  assert [s.num_layers for s in stacks] == [2, 2, 4]
  assert {(s.num_heads, s.window, s.ffn_dim) for s in stacks} == {(4, 64, 512)}
  assert (level.d_model, level.quantizer.codebook_size) == (128, 512)
  assert step.model_flops(config) == 65_101_037_568
  for settings in step.DEFAULT_VARIED:
    data = config_file.load(step.DEFAULT, settings).data
    assert data.batch_size * data.sequence_length == 4096


def test_a_wrong_setting_is_an_error_of_the_command(capsys):
  with pytest.raises(SystemExit, match='2'):
    step.main(['tiny', '--set', 'data.rows=3'])
  assert 'data.rows: unknown setting' in capsys.readouterr().err
