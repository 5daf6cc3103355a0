import jax
import numpy as np
import pytest

from abstractinator.ops import code_rows

LONGEST = 4


def plain(rows, ids_BPL, length_BP, num_slots, num_queries):
  """Does the same in Python; returns (codes, lowest slot, origin) by row."""
  found = []
  for row in range(len(ids_BPL)):
    documents = {}
    for slot in np.flatnonzero(rows.is_valid_BP[row]):
      lowest = int(rows.lowest_BP[row, slot])
      ids = ids_BPL[row, slot, : length_BP[row, slot]]
      origin = int(rows.origin_BP[row, slot])
      documents.setdefault(lowest, []).extend((int(i), origin) for i in ids)
    slots = []
    for codes in documents.values():
      first = len(slots)
      for at in range(0, len(codes) - num_queries + 1, num_queries):
        group = codes[at : at + num_queries]
        slots.append(([code for code, _ in group], first, group[0][1]))
    found.append(slots[:num_slots])
  return found


@pytest.mark.parametrize('num_queries', [1, 2, 3])
@pytest.mark.parametrize('num_slots', [30, 6])
@pytest.mark.parametrize('seed', range(4))
def test_ids_of_segments_become_slots_of_the_level_below(
  num_queries, num_slots, seed
):
  rng = np.random.default_rng(seed)
  batch, slots = 3, 7
  count = np.array([7, 4, 0])
  is_valid = np.arange(slots) < count[:, None]
  lowest = np.zeros((batch, slots), np.int32)
  lowest[0, 2:5], lowest[0, 5:], lowest[1, 1:4] = 2, 5, 1
  rows = code_rows.top_rows(
    np.zeros((batch, slots), np.int32), is_valid, lowest
  )
  rows = rows.replace(
    origin_BP=np.array([[0, 0, 1, 2, 2, 3, 3], [0, 1, 1, 2, 0, 0, 0], [0] * 7])
  )
  ids = rng.integers(0, 99, (batch, slots, LONGEST)).astype(np.int32)
  length = np.where(is_valid, rng.integers(1, LONGEST + 1, (batch, slots)), 0)
  # A segment may come out without an id.
  length[0, 3] = 0
  got = jax.jit(code_rows.unfold, static_argnames=('num_slots', 'num_queries'))(
    rows, ids, length, num_slots=num_slots, num_queries=num_queries
  )
  want = plain(rows, ids, length, num_slots, num_queries)
  assert got.codes_BU.shape == (batch, num_slots * num_queries)
  codes = np.asarray(got.codes_BU).reshape(batch, num_slots, num_queries)
  for row, expected in enumerate(want):
    assert int(got.is_valid_BP[row].sum()) == len(expected)
    assert [
      (list(codes[row, p]), got.lowest_BP[row, p], got.origin_BP[row, p])
      for p in np.flatnonzero(got.is_valid_BP[row])
    ] == expected
