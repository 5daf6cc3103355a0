import numpy as np
import pytest

from abstractinator.evaluation.windows import (
  Passage,
  batches_of,
  rows_of,
  windows_of,
)


@pytest.mark.parametrize('stride', [1, 3, 8])
def test_every_id_counts_once(stride):
  size = 8
  passages = [
    Passage(np.arange(100 * i, 100 * i + n), counted_from=start)
    for i, (n, start) in enumerate(
      [(1, 0), (8, 0), (9, 0), (30, 0), (2, 1), (2, 0), (30, 2), (30, 17)]
    )
  ]
  rows = rows_of(windows_of(passages, size, stride), size, max_documents=3)
  counted, sizes = [], set()
  for batch in batches_of(rows, size, batch_size=4):
    ids_BS = batch.batch.ids_BS
    assert ids_BS.shape == (4, size)
    counted += ids_BS[batch.is_counted_BS].tolist()
    for row, windows in enumerate(batch.windows):
      sizes.add(len(windows))
      assert batch.batch.row_B[row] >= 0
      document_S = batch.batch.document_BS[row]
      for number, window in enumerate(windows):
        np.testing.assert_array_equal(
          ids_BS[row][document_S == number], window.ids
        )
        # The context is what stands before in the passage, and all of the
        # stride's complement if there is so much.
        ids = passages[window.passage].ids
        first = window.ids[window.num_context] - ids[0]
        room = size - stride
        is_last = window.ids[-1] == ids[-1]
        if passages[window.passage].counted_from and is_last:
          room = size - (ids[-1] + 1 - ids[0] - first)
        assert window.num_context == min(first, room)
    for row in range(len(batch.windows), 4):
      assert batch.batch.row_B[row] == -1
      assert (batch.batch.document_BS[row] == -1).all()
  assert counted == [
    i for p in passages for i in p.ids[p.counted_from :].tolist()
  ]
  assert max(sizes) <= 3
  assert stride < 8 or sizes == {1, 2}
