"""Codes of texts as rows."""

import numpy as np
import pytest

from abstractinator.codes.packed import PackedCodes
from abstractinator.data.documents import Documents, MemoryDocument

TEXTS = [[5, 6, 7, 8, 9], [1], [2, 3]]
# The last code of each text has 100 added.
IDS = [5, 6, 7, 8, 109, 101, 2, 103]
TEXT_OF_ID = [0, 0, 0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize('sequence_length', [1, 2, 3, 4, 7, 8, 9])
def test_every_code_is_in_exactly_one_row(sequence_length):
  documents = [
    MemoryDocument(str(i), np.array(codes, np.int32))
    for i, codes in enumerate(TEXTS)
  ]
  rows = PackedCodes(
    Documents(documents),
    sequence_length=sequence_length,
    end_offset=100,
  )
  assert (len(rows.documents), rows.num_ids) == (3, 8)
  assert rows.identity() == {
    'num_documents': 3,
    'num_codes': 8,
    'num_rows': -(-8 // sequence_length),
    'sha256': Documents(documents).sha256(),
  }
  for number, row in enumerate(rows):
    part = slice(number * sequence_length, (number + 1) * sequence_length)
    missing = sequence_length - len(IDS[part])
    texts = TEXT_OF_ID[part]
    assert row['ids'].tolist() == [*IDS[part], *[rows.pad_id] * missing]
    assert row['document'].tolist() == [
      *(text - texts[0] for text in texts),
      *[-1] * missing,
    ]
    assert row['row'] == number
  assert len(list(rows)) == len(rows) == -(-8 // sequence_length)
