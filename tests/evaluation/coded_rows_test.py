from types import SimpleNamespace

import numpy as np

from abstractinator.evaluation.coded_rows import coded_levels, substitute


def test_shuffled_codes_are_those_of_other_segments():
  vectors = np.arange(12.0).reshape(1, 12, 1)
  is_code = np.arange(12)[None] < 10
  got = substitute(vectors, is_code, num_queries=2, name='shuffled')
  # Five segments, moved on by two; empty slots stay.
  assert got[0, :, 0].tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 10, 11]
  assert not substitute(vectors, is_code, 2, 'zeroed').any()
  assert substitute(vectors, is_code, 2, 'true') is vectors


def level(index_S, num_slots, num_queries):
  """Codes of a level whose other values do not matter here."""
  index_BS = np.array([index_S])
  codes_BU = np.zeros((1, num_slots * num_queries), np.int32)
  return SimpleNamespace(
    segments=SimpleNamespace(
      index_BS=index_BS, is_capacity_bound_BS=np.zeros(index_BS.shape, bool)
    ),
    entropy_bits_BS=np.zeros(index_BS.shape),
    entropy_nats_BS=np.zeros(index_BS.shape),
    is_valid_BP=np.zeros((1, num_slots), bool),
    is_code_BU=codes_BU == 0,
    quantized=SimpleNamespace(codes_BP=codes_BU),
  )


def test_bytes_follow_the_first_codes_of_their_segments_upwards():
  # Three segments of bytes have the codes 0 to 5; those are cut into [0 1 2]
  # and [3 4 5], whose codes 0 and 1 are cut apart.
  output = SimpleNamespace(
    levels=(
      level([0, 0, 1, 1, 2, -1], num_slots=4, num_queries=2),
      level([0, 0, 0, 1, 1, 1, -1, -1], num_slots=4, num_queries=1),
      level([0, 1, -1, -1], num_slots=2, num_queries=1),
    )
  )
  levels = coded_levels(output)
  assert [x.num_queries for x in levels] == [2, 1, 1]
  assert [x.byte_slot_BS[0].tolist() for x in levels] == [
    [0, 0, 1, 1, 2, -1],
    [0, 0, 0, 0, 1, -1],
    [0, 0, 0, 0, 1, -1],
  ]
