import math

import numpy as np
import pytest

from abstractinator.evaluation.unigram import CodeCounts


@pytest.mark.parametrize('sizes', [(5,), (300, 300)])
def test_unigram_bits_are_those_of_a_model_that_learns_as_it_goes(sizes):
  rng = np.random.default_rng(0)
  num_codes = math.prod(sizes)
  codes = np.minimum(rng.geometric(0.3, 200) * num_codes // 20, num_codes - 1)
  counts = CodeCounts(sizes)
  counts.add(codes[:50])
  counts.add(codes[50:])
  digits = [codes] if len(sizes) == 1 else [codes % sizes[0], codes // sizes[0]]
  expected = 0.0
  for digit, size in zip(digits, sizes, strict=True):
    seen = np.full(size, 0.5)
    for value in digit:
      expected -= np.log2(seen[value] / seen.sum())
      seen[value] += 1
  assert counts.bits() == pytest.approx(expected)
  used = [np.unique(digit, return_counts=True)[1] / 200 for digit in digits]
  bits = sum(-(p * np.log2(p)).sum() for p in used)
  assert counts.perplexity() == pytest.approx(2**bits)
  assert counts.live_fraction() == pytest.approx(
    np.mean([len(p) / size for p, size in zip(used, sizes, strict=True)])
  )
