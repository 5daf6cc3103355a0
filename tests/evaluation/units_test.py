"""Figures as text, with their units."""

import re

import pytest

from abstractinator.evaluation import units


@pytest.mark.parametrize(
  ('name', 'value', 'text'),
  [
    ('total_bits_per_byte', 2.5, '2.500 bits/byte'),
    ('expander_bits_per_byte_zeroed_codes', 2.5, '2.500 bits/byte'),
    ('top_lm_code_bits_per_code', 2.5, '2.500 bits/code'),
    ('bytes_per_segment', 4.5, '4.50 bytes/segment'),
    ('segment_bits_p95', 4.5, '4.50 bits'),
    ('code_capacity_bits', 4.5, '4.50 bits'),
    ('live_code_fraction', 0.5, '50.00%'),
    ('codebook_perplexity', 20.25, '20.2 codes'),
    ('word_start_f1', 0.5, '50.00%'),
    ('bytes', 1234567, '1,234,567'),
    ('code_model', 'top_lm', 'top_lm'),
    ('other', 0.123456, '0.1235'),
  ],
)
def test_a_figure_has_its_unit(name, value, text):
  assert units.with_unit(name, value) == text


def test_values_are_below_each_other():
  assert units.table({'a': '1', 'long': '2'}, '> ') == [
    '> a     1',
    '> long  2',
  ]
  assert units.table({}) == []


LEVEL = {
  'live_code_fraction': 0.5,
  'entropy_model_bits_per_byte': 2.18149,
  'loss_total': 9.0,
}


def test_figures_of_levels_and_stages_have_their_names():
  of_stages = {f'level1/stage{i}/live_code_fraction': 0.25 * i for i in (1, 2)}
  values = {f'level0/{k}': x for k, x in LEVEL.items()} | of_stages
  values |= {'total_bits_per_byte': 3.5, 'noise/a/total_bits_per_byte': 9.0}
  assert list(units.figures(values).items()) == [
    ('total', '3.500 bits/byte'),
    ('level0: entropy model', '2.181 bits/byte'),
    ('level0: codes in use', '50.00%'),
    ('level1: codes in use, stage1', '25.00%'),
    ('level1: codes in use, stage2', '50.00%'),
  ]


def test_a_meaning_needs_no_other_row():
  for members in units.MEANINGS.values():
    for name, (_, about) in members.items():
      assert not re.search(r'\b(of the same|of them|the two)\b', about), name


def test_figures_of_a_run_of_codes_are_those_of_its_top_lm():
  top = {'top_lm_code_bits_per_code': 4.5, 'top_lm_code_accuracy': 0.125}
  assert units.figures(top) == {
    'top LM': '4.500 bits/code',
    'codes right': '12.50%',
  }
  assert 'top LM' not in units.figures(top | LEVEL)


def test_columns_end_below_each_other():
  assert units.columns([['', 'runs/a', 'b'], ['step', '1', '23']]) == [
    '      runs/a   b',
    'step       1  23',
  ]
  assert units.columns([]) == []
