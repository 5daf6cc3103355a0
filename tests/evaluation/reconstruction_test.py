"""Comparison of decoded and true ids, against lists of Python."""

import numpy as np
import pytest

from abstractinator.evaluation.reconstruction import align, free_running_counts
from abstractinator.model.pyramid import DecodedRows
from abstractinator.ops.code_rows import CodeRows
from abstractinator.types import EOS_ID, PAD_ID

LONGEST = 4


def decoded_rows(segments, num_slots):
  """Rows of one decoded text.

  Args:
    segments: Top slot and ids of each segment of the first level.
    num_slots: Number of slots; those without a segment hold noise.
  """
  ids_PL = np.full((num_slots, LONGEST), 9)
  length_P, origin_P = np.zeros((2, num_slots), int)
  for slot, (top, ids) in enumerate(segments):
    ids_PL[slot, : len(ids)] = ids
    length_P[slot], origin_P[slot] = len(ids), top
  rows = CodeRows(None, None, None, origin_P[None])
  return DecodedRows(ids_PL[None], length_P[None], rows)


def arrays(truth):
  """Ids and top slots of a row whose top segments hold these ids."""
  ids = [id_ for of_top in truth for id_ in of_top]
  tops = np.repeat(np.arange(len(truth)), [len(of_top) for of_top in truth])
  return (
    np.pad(ids, (0, 2), constant_values=PAD_ID).astype(int),
    np.pad(tops, (0, 2), constant_values=-1),
  )


def is_byte(id_):
  return id_ < 256


@pytest.mark.parametrize('seed', range(3))
def test_it_agrees_with_lists(seed):
  rng = np.random.default_rng(seed)
  # Few values, so that ids agree by chance; special ids in any place.
  values = [0, 1, 2, EOS_ID]
  # A top segment may hold no id: its first code is none of a segment below.
  truth = [rng.choice(values, rng.integers(0, 6)).tolist() for _ in range(40)]
  segments = [
    (top, rng.choice(values, rng.integers(0, LONGEST + 1)).tolist())
    for top in range(len(truth))
    for _ in range(2)
  ]
  decoded, (ids_S, top_S) = decoded_rows(segments, 90), arrays(truth)
  beside, beyond, right, total = [], {}, 0, 0
  for top, expected in enumerate(truth):
    got = [id_ for of, ids in segments if of == top for id_ in ids]
    missing = [-1] * (len(expected) - len(got))
    beside += got[: len(expected)] + missing
    if got[len(expected) :]:
      beyond[top] = got[len(expected) :]
    right += sum(
      a == b and is_byte(a) for a, b in zip(expected, got, strict=False)
    )
    total += max(sum(map(is_byte, expected)), sum(map(is_byte, got)))
  beside_S, beyond_ids = align(
    decoded.ids_BPL[0], decoded.length_BP[0], decoded.rows.origin_BP[0], top_S
  )
  assert beside_S.tolist() == [*beside, -1, -1]
  assert {top: ids.tolist() for top, ids in beyond_ids.items()} == beyond
  counts = free_running_counts(decoded, ids_S[None], top_S[None])
  assert [x.tolist() for x in counts] == [[right], [total]]
  assert 0 < right < total


@pytest.mark.parametrize(
  ('segments', 'expected'),
  [
    ([(0, [1, 2]), (1, [3, 4, EOS_ID])], (4, 4)),
    # EOS forgotten: it is no byte.
    ([(0, [1, 2]), (1, [3, 4])], (4, 4)),
    # Too long and too short cost one each, in their own segment only.
    ([(0, [1, 2, 2]), (1, [3, 4, EOS_ID])], (4, 5)),
    ([(0, [1]), (1, [3, 4, EOS_ID])], (3, 4)),
    # A wrong EOS in place of a byte does not count as right.
    ([(0, [1, EOS_ID]), (1, [3, 4, EOS_ID])], (3, 4)),
    ([(0, [5]), (1, [9, 9, 9, 9])], (0, 6)),
    # Bytes of a top segment count wherever they were decoded.
    ([(0, [1]), (0, [2]), (1, [3]), (1, [4, 5])], (4, 5)),
  ],
)
def test_counts_by_hand(segments, expected):
  """Two top segments, of the bytes [1 2] and [3 4 EOS]."""
  ids_S, top_S = arrays([[1, 2], [3, 4, EOS_ID]])
  decoded = decoded_rows(segments, 6)
  counts = free_running_counts(decoded, ids_S[None], top_S[None])
  assert tuple(int(x) for (x,) in counts) == expected
