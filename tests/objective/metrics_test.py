import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.objective import metrics
from abstractinator.objective.by_level import ByLevel
from abstractinator.types import EOS_ID, NUM_BYTES, PAD_ID, Batch, Mean

NUM_CODES = 8
TERMS = {
  'entropy_model': jnp.float32(6.0),
  'gaussian': jnp.float32(2.0),
  'expander': jnp.float32(3.0),
  'end': jnp.float32(1.5),
  'commitment': jnp.float32(9.0),
}


def make_metrics(stage_sizes=(NUM_CODES,), has_gaussian=False, queries=1):
  """Metrics of rows [a b c EOS] in two segments and [d | padding] in one.

  Each segment has the same code `queries` times.
  """
  ids = jnp.array([[1, 2, 3, EOS_ID], [7, PAD_ID, PAD_ID, PAD_ID]])
  document = jnp.array([[0, 0, 0, 0], [0, -1, -1, -1]])
  # Right at a, c, EOS and on padding; wrong at b and d.
  guess = jnp.array([[1, 9, 3, EOS_ID], [8, PAD_ID, PAD_ID, PAD_ID]])
  output = types.SimpleNamespace(
    compressed=types.SimpleNamespace(
      gaussian_nats_BS=jnp.ones((2, 4)) if has_gaussian else None,
      segments=types.SimpleNamespace(
        count_B=jnp.array([2, 1]),
        is_capacity_bound_BS=jnp.array([[0, 0, 1, 1], [0] * 4], bool),
      ),
      is_code_BU=jnp.array([[True, True, False], [True, False, False]]).repeat(
        queries, axis=1
      ),
      quantized=types.SimpleNamespace(
        codes_BP=jnp.array([[4, 1, 0], [4, 2, 2]]).repeat(queries, axis=1),
        digits_BPM=jnp.array(
          [[[0, 1], [1, 0], [0, 0]], [[0, 1], [2, 0], [2, 0]]]
        ),
      ),
    ),
    expanded=types.SimpleNamespace(best_BS=guess),
  )
  batch = Batch(ids, document, jnp.arange(2))
  return metrics.level_metrics(
    output, batch, TERMS, stage_sizes, jnp.float32(4), NUM_BYTES
  )


def test_sums_and_counts_by_hand():
  bit = np.log(2)
  want = {
    'entropy_model_bits_per_byte': (6 / bit, 4),
    'expander_bits_per_byte': (3 / bit, 4),
    'end_bits_per_byte': (1.5 / bit, 4),
    'commitment': (9, 3),
    'teacher_forced_byte_accuracy': (2, 4),
    'bytes_per_segment': (4, 3),
    'overflow_fraction': (2, 5),
    'code_counts': ([0, 1, 0, 0, 2, 0, 0, 0], 1),
  }
  got = make_metrics()
  assert set(got) == set(want)
  for name, (total, count) in want.items():
    np.testing.assert_allclose(got[name].total, total, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(got[name].count, count, rtol=1e-6, err_msg=name)


def test_the_gaussian_head_is_measured_per_id_where_there_is_one():
  got = make_metrics(has_gaussian=True)['gaussian_bits_per_dimension']
  np.testing.assert_allclose(got.total, 2 / np.log(2), rtol=1e-6)
  assert float(got.count) == 5


def test_merging_adds_and_dividing_comes_last():
  a = ByLevel(whole={'loss': Mean(np.float32(6), np.float32(2))})
  b = ByLevel(whole={'loss': Mean(np.float32(1), np.float32(5))})
  assert metrics.merge(None, a) is a
  merged = metrics.merge(a, b)
  # This is not the mean of the two means.
  assert metrics.summarize(merged) == ByLevel(whole={'loss': 1.0})


def test_a_summary_of_the_codes():
  got = metrics.summarize_level(jax.device_get(make_metrics()))
  assert 'code_counts' not in got
  bits = -(np.log2(1 / 3) / 3 + 2 * np.log2(2 / 3) / 3)
  assert got['live_code_fraction'] == 2 / NUM_CODES
  assert got['codebook_perplexity'] == pytest.approx(2**bits)
  assert got['code_unigram_bits_per_byte'] == pytest.approx(bits * 3 / 4)
  assert got['entropy_model_bits_per_byte'] == pytest.approx(1.5 / np.log(2))


def test_each_code_of_a_segment_counts():
  found = jax.device_get(make_metrics(queries=3))
  want = metrics.summarize_level(jax.device_get(make_metrics()))
  got = metrics.summarize_level(found)
  assert float(found['commitment'].count) == 9
  for name in ('live_code_fraction', 'bytes_per_segment'):
    assert got[name] == want[name]
  assert got['code_unigram_bits_per_byte'] == pytest.approx(
    3 * want['code_unigram_bits_per_byte']
  )


def test_codes_of_two_stages_are_counted_whole_and_by_digit():
  found = make_metrics((4, 2))
  counts = metrics.histograms(ByLevel((jax.device_get(found),))).flattened()
  want = {
    'code_usage': [0, 1, 0, 0, 2, 0, 0, 0],
    'stage0/code_usage': [2, 1, 0, 0],
    'stage1/code_usage': [1, 2],
  }
  assert set(counts) == set(want)
  for name in want:
    np.testing.assert_array_equal(counts[name], want[name])
  got = metrics.summarize_level(jax.device_get(found))
  bits = np.log2(3) - 2 / 3
  assert got['stage0/live_code_fraction'] == 0.5
  assert got['stage1/live_code_fraction'] == 1
  for name in ('stage0/', 'stage1/', ''):
    assert got[f'{name}codebook_perplexity'] == pytest.approx(2**bits)
  assert got['code_unigram_bits_per_byte'] == pytest.approx(bits * 3 / 4)


def test_too_many_codes_are_counted_by_digit_only():
  found = make_metrics((4096, 4096))
  sizes = {k: v.total.size for k, v in found.items() if v.total.size > 1}
  assert sizes == {'stage0/code_counts': 4096, 'stage1/code_counts': 4096}
  got = metrics.summarize_level(jax.device_get(found))
  assert 'codebook_perplexity' not in got
  # The bits of both digits add up.
  bits = 2 * (np.log2(3) - 2 / 3)
  assert got['code_unigram_bits_per_byte'] == pytest.approx(bits * 3 / 4)
  (histograms,) = metrics.histograms(ByLevel((found,))).levels
  assert set(histograms) == {'stage0/code_usage', 'stage1/code_usage'}


def test_a_summary_of_nothing_is_finite():
  zero = jax.tree.map(np.zeros_like, jax.device_get(make_metrics()))
  for value in metrics.summarize_level(zero).values():
    assert np.isfinite(value)
