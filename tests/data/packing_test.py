"""The stream of documents, cut into rows."""

import pickle

import numpy as np
import pytest

from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.data.packing import PackedRows, empty_row
from abstractinator.types import EOS_ID, PAD_ID, bytes_to_ids


def pack(*contents, sequence_length, max_documents=99):
  documents = [MemoryDocument(f'd{i}', c) for i, c in enumerate(contents)]
  return PackedRows(
    [Documents(documents)],
    sequence_length=sequence_length,
    max_documents=max_documents,
  )


def test_rows_by_hand():
  rows = pack(b'abcdef', b'g', b'hi', sequence_length=5)
  a, e, p = ord('a'), EOS_ID, PAD_ID
  assert [row['ids'].tolist() for row in rows] == [
    [a, a + 1, a + 2, a + 3, a + 4],
    [a + 5, e, a + 6, e, a + 7],
    [a + 8, e, p, p, p],
  ]
  assert [row['document'].tolist() for row in rows] == [
    [0, 0, 0, 0, 0],
    [0, 0, 1, 1, 2],
    [0, 0, -1, -1, -1],
  ]
  assert [int(row['row']) for row in rows] == [0, 1, 2]
  assert (rows.num_ids, len(rows.documents), len(rows)) == (12, 3, 3)


def test_row_of_too_many_documents_closes_early():
  rows = pack(b'a', b'b', b'c', b'd' * 5, sequence_length=6, max_documents=2)
  a, b, c, d = b'abcd'
  assert [row['ids'].tolist() for row in rows] == [
    [a, EOS_ID, b, EOS_ID, PAD_ID, PAD_ID],
    [c, EOS_ID, d, d, d, d],
    [d, EOS_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID],
  ]
  assert rows[1]['document'].tolist() == [0, 0, 1, 1, 1, 1]


def test_eos_may_stand_alone_in_a_row():
  rows = pack(b'abcd', sequence_length=4)
  assert rows[1]['ids'].tolist() == [EOS_ID, PAD_ID, PAD_ID, PAD_ID]
  assert rows[1]['document'].tolist() == [0, -1, -1, -1]


def random_documents(rng):
  lengths = rng.choice([1, 2, 3, 8, 40, 300], size=rng.integers(1, 30))
  contents = [rng.bytes(int(n)) for n in lengths]
  return [bytes(range(256)), *contents]


@pytest.mark.parametrize('sequence_length', [1, 2, 7, 16, 64, 5000])
@pytest.mark.parametrize('max_documents', [1, 2, 3, 8, 99])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_every_id_is_in_exactly_one_row(sequence_length, max_documents, seed):
  contents = random_documents(np.random.default_rng(seed))
  rows = pack(
    *contents, sequence_length=sequence_length, max_documents=max_documents
  )
  stream = []
  ends = 0
  for i, row in enumerate(rows):
    ids, document = row['ids'], row['document']
    assert ids.shape == document.shape == (sequence_length,)
    assert ids.dtype == document.dtype == row['row'].dtype == np.int32
    assert row['row'] == i
    is_real = document >= 0
    count = is_real.sum()
    assert count
    assert is_real[:count].all()
    assert (ids[~is_real] == PAD_ID).all()
    assert (document[~is_real] == -1).all()
    # A row counts its documents from 0 and begins one after each EOS.
    before = ids[: count - 1] == EOS_ID
    assert document[:count].tolist() == [0, *np.cumsum(before)]
    assert document.max() < max_documents
    # A row ends early only at a document's end, when it holds the maximum.
    if count < sequence_length and i < len(rows) - 1:
      assert ids[count - 1] == EOS_ID
      assert document[count - 1] == max_documents - 1
    stream.append(ids[is_real])
    ends += (ids == EOS_ID).sum()
  expected = np.concatenate([bytes_to_ids(content) for content in contents])
  np.testing.assert_array_equal(np.concatenate(stream), expected)
  assert ends == len(rows.documents) == len(contents)
  assert rows.num_ids == sum(map(len, contents)) + len(contents)


def test_rows_end_early_only_when_one_would_hold_too_many_documents():
  # 8 ids can hold 2 whole documents of 3 ids and one id on each side of them.
  contents = [b'ab'] * 9
  for sequence_length, max_documents, is_plain in (
    (7, 3, True),
    (8, 3, False),
    (8, 4, True),
    (99, 8, False),
    (99, 9, True),
  ):
    rows = pack(
      *contents, sequence_length=sequence_length, max_documents=max_documents
    )
    starts = rows._starts.tolist()
    expected = [*range(0, 27, sequence_length), 27]
    assert (starts == expected) == is_plain


@pytest.mark.parametrize('index', [-1, 3])
def test_there_are_no_other_rows(index):
  rows = pack(b'abcdefghij', sequence_length=4)
  with pytest.raises(IndexError, match=f'row {index} of 3'):
    rows[index]


def test_no_documents_are_refused():
  with pytest.raises(ValueError, match='data: has no documents, allowed: at'):
    pack(sequence_length=4)


@pytest.mark.parametrize('max_documents', [1, 99])
def test_rows_can_be_pickled(max_documents):
  rows = pack(b'abc', b'd', sequence_length=3, max_documents=max_documents)
  copy = pickle.loads(pickle.dumps(rows))
  assert len(copy) == len(rows)
  for one, two in zip(copy, rows, strict=True):
    assert one['ids'].tolist() == two['ids'].tolist()


def test_empty_row_is_padding():
  row = empty_row(3)
  assert row['ids'].tolist() == [PAD_ID] * 3
  assert row['document'].tolist() == [-1] * 3
  assert row['row'] == -1
  assert {v.dtype for v in row.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize('sequence_length', [1, 2, 3, 4, 7, 8, 9])
def test_arrays_without_eos_lie_side_by_side(sequence_length):
  texts = [[5, 6, 7, 8, 109], [101], [2, 103]]
  documents = Documents(
    MemoryDocument(str(i), np.array(codes, np.int32))
    for i, codes in enumerate(texts)
  )
  rows = PackedRows(
    [documents],
    sequence_length=sequence_length,
    max_documents=3,
    has_eos=False,
  )
  assert rows.identity() == {
    'num_documents': 3,
    'num_codes': 8,
    'num_rows': -(-8 // sequence_length),
    'sha256': documents.sha256(),
  }
  for number, row in enumerate(rows):
    part = slice(number * sequence_length, (number + 1) * sequence_length)
    ids = [5, 6, 7, 8, 109, 101, 2, 103][part]
    of_text = [0, 0, 0, 0, 0, 1, 2, 2][part]
    missing = sequence_length - len(ids)
    assert row['ids'].tolist() == [*ids, *[rows.pad_id] * missing]
    assert row['document'].tolist() == [
      *(text - of_text[0] for text in of_text),
      *[-1] * missing,
    ]
  assert len(list(rows)) == len(rows)
