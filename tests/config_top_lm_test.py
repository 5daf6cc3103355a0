"""Settings of the top LM."""

import dataclasses

import pytest

from abstractinator.config.top_lm import TopLMConfig
from tests import tiny_top_lm


def test_a_config_survives_its_own_dictionary():
  for form in tiny_top_lm.ATTENTION:
    values = tiny_top_lm.values('continuous', form, window=7)
    config = TopLMConfig.from_dict(values)
    assert config.to_dict() == values
    assert config.stack.window == 7


@pytest.mark.parametrize(
  ('edits', 'message'),
  [
    (
      {'mode': 'vector'},
      "top_lm.mode: got 'vector', allowed: discrete, continuous",
    ),
    ({'d_model': 0}, 'top_lm.d_model: got 0, allowed: a positive number'),
    (
      {'d_model': 15},
      'top_lm.stack.num_heads: got 2, allowed: a divisor of d_model (15)',
    ),
    (
      {'d_model': 6},
      'top_lm.stack.num_heads: got 2, allowed: d_model / num_heads even, for'
      ' rotary positions (d_model is 6)',
    ),
    (
      {'width': 6},
      'top_lm.width: unknown setting, allowed: mode, d_model, stack, expand',
    ),
  ],
)
def test_a_bad_setting_is_named(edits, message):
  with pytest.raises(ValueError) as info:
    TopLMConfig.from_dict(tiny_top_lm.values() | edits, 'top_lm')
  assert str(info.value) == message


def test_there_are_no_defaults():
  for field in dataclasses.fields(TopLMConfig):
    assert field.default is dataclasses.MISSING
    assert field.default_factory is dataclasses.MISSING
