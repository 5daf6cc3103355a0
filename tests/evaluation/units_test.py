"""Figures as text, with their units."""

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
