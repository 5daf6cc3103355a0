import numpy as np

from abstractinator.benchmarks import round_trip
from abstractinator.codes.codes import Codes


def test_segments_are_the_same_if_place_and_codes_are():
  old = Codes(np.array([1, 2, 3, 4, 5, 6]), np.array([3]))
  new = Codes(np.array([1, 2, 9, 4, 5, 6]), np.array([3]))
  spans = round_trip._spans([2, 1, 4])
  assert spans == [(0, 2), (2, 3), (3, 7)]
  assert round_trip._num_same(old, spans, old, spans) == 3
  assert round_trip._num_same(old, spans, new, spans) == 2
  moved = round_trip._spans([2, 2, 3])
  assert round_trip._num_same(old, spans, old, moved) == 1


def test_a_segment_without_a_byte_is_none():
  """That of EOS, the last one."""
  assert round_trip._spans([2, 3, 0]) == [(0, 2), (2, 5)]
