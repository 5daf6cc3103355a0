"""Numbers that are too large or too small, and names and values too long."""

import time

import pytest

from abstractinator.config import RunConfig
from tests.helpers.config_values import (
  LEVEL,
  MLA,
  TOP_LM,
  assert_refused,
  name_of,
  stacked,
  values,
)

DIGITS = 10**5000


@pytest.mark.parametrize(
  ('edits', 'message'),
  [
    ({'seed': 2**63}, ('seed', '9223372036854775808', '0 to 2^32 - 1')),
    ({'seed': DIGITS}, ('seed', 'a value too large to show')),
    ({'loss.end': DIGITS}, ('loss.end', 'too large to show', 'at most')),
    ({'loss.end': 10**400}, ('loss.end', '1000', 'at most 1000000000')),
    ({'loss.end': 1e308}, ('loss.end', '1e+308', 'at most 1000000000')),
    (
      {'optimizer.learning_rate': 1e308},
      ('optimizer.learning_rate', '1e+308', 'to 1000'),
    ),
    # It is 0 in float32.
    (
      {'optimizer.learning_rate': 1e-300},
      ('optimizer.learning_rate', '1e-300', '1e-30 to'),
    ),
    (
      {'optimizer.relative_rates.top_lm': 1e308},
      ('optimizer.relative_rates.top_lm', '1e+308', 'to 1e+09'),
    ),
    ({'max_steps': 2**31}, ('max_steps', '2147483648', 'at most 2147483647')),
    ({'data.sequence_length': 2**25}, ('data.sequence_length', 'at most')),
    ({'data.vocab_size': 2**31}, ('data.vocab_size', 'at most')),
    (
      {'data.batch_size': 2**30, 'data.sequence_length': 1024},
      ('data.batch_size', '1073741824', 'at most 2097151 rows of 1024'),
    ),
    ({'data.read_threads': 10**6}, ('data.read_threads', 'at most 1024')),
    ({'mesh.data': 2**40}, ('mesh.data', 'positive number or -1')),
    (
      {f'{LEVEL}.encoder.num_layers': 2**31 - 1},
      ('model.levels[0].encoder.num_layers', '2147483647', 'at most 1024'),
    ),
    (
      {f'{LEVEL}.expander.lookback': 10**8},
      ('model.levels[0].expander.lookback', '100000000', 'at most 4096'),
    ),
    (
      {f'{LEVEL}.encoder.ffn_dim': 10**29},
      ('model.levels[0].encoder.ffn_dim', 'at most'),
    ),
    (
      {f'{LEVEL}.encoder.attention': MLA | {'kv_dim': 10**9}},
      ('model.levels[0].encoder.attention.kv_dim', 'at most 65536'),
    ),
    (
      {f'{LEVEL}.d_model': 2**20},
      ('model.levels[0].d_model', '1048576', 'at most 65536'),
    ),
    (
      {f'{LEVEL}.segmentation.max_length': 10**6},
      ('model.levels[0].segmentation.max_length', 'at most 4096'),
    ),
    (
      {f'{LEVEL}.quantizer.codebook_size': 2**30},
      ('model.levels[0].quantizer.codebook_size', 'at most 16777216'),
    ),
    (
      {f'{LEVEL}.entropy_heads.temperature': 1e308},
      ('model.levels[0].entropy_heads.temperature', 'at most 1e6'),
    ),
    (
      {'model.top_lm': TOP_LM | {'d_model': 2**31}},
      ('model.top_lm.d_model', 'at most 65536'),
    ),
    (
      {f'{LEVEL}.pooling.num_queries': 1024, 'data.sequence_length': 2**20},
      ('model.levels[0].pooling.num_queries', 'fewer: rows have'),
    ),
    ({'model.levels': [None] * 10**6}, ('model.levels', 'group of settings')),
    ({'model.dtype': 'x' * 10**6}, ('model.dtype', "'xxxx", '...')),
    ({'a\nb': 1}, ("'a\\nb'", 'unknown setting')),
    ({'x' * 10**6: 1}, ('xxxx', 'unknown setting')),
  ],
  ids=lambda value: name_of(value)[:40],
)
def test_settings_without_measure(edits, message):
  start = time.monotonic()
  assert_refused(edits, message)
  assert time.monotonic() - start < 2


def test_an_error_fits_a_line():
  with pytest.raises(ValueError, match='unknown setting') as error:
    RunConfig.from_dict(values({'x' * 10**6: 1}))
  assert len(str(error.value)) < 500


def test_too_many_levels():
  edits = {'model.levels': stacked()['model.levels'][:1]}
  edits['model.levels'] += stacked()['model.levels'][1:] * 16
  assert_refused(edits, ('model.levels', 'at most 16'))
