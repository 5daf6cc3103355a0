"""Tests of the configs that benchmarks name."""

import argparse

import pytest

from abstractinator.benchmarks import named_configs
from abstractinator.config import setting_text


def test_settings_change_a_config():
  settings = [('data.batch_size', 3), ('model.implementation.remat', 'blocks')]
  found = named_configs.load('tiny', settings)
  assert found.data.batch_size == 3
  assert found.model.implementation.remat == 'blocks'


@pytest.mark.parametrize(
  ('name', 'settings', 'message'),
  [
    ('huge', [], "config: got 'huge', allowed: base, compare, default"),
    ('tiny', [('data.rows', 3)], 'data.rows: unknown setting'),
    ('tiny', [('data.batch_size', 'many')], 'batch_size'),
    ('tiny', [('data.batch_size', 0)], 'data.batch_size: got 0'),
  ],
)
def test_what_is_not_there_or_bad_is_an_error(name, settings, message):
  with pytest.raises(ValueError, match=message):
    named_configs.load(name, settings)


def test_a_setting_has_a_value():
  assert named_configs.setting('a.b=2') == ('a.b', 2)
  with pytest.raises(argparse.ArgumentTypeError, match='PATH=VALUE'):
    named_configs.setting('a.b')


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('true', True),
    ('True', True),
    ('None', None),
    ('2', 2),
    ('blocks', 'blocks'),
    ('{[]: 1}', '{[]: 1}'),
    ('(1, 2)', (1, 2)),
  ],
)
def test_values_are_those_of_json_and_of_python(text, value):
  assert setting_text.parse(text) == value
