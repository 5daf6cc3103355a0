"""Files of many documents: Parquet, ArrayRecord and arrays of ids."""

import pickle
from concurrent import futures

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from abstractinator.data import records, sources
from tests.helpers.document_files import contents, names, write

ALL_BYTES = bytes(range(256))


def parquet(path, texts, group=2):
  table = pyarrow.table({'id': range(len(texts)), 'text': texts})
  pyarrow.parquet.write_table(table, path, row_group_size=group)


def array_record(path, records):
  writer = ArrayRecordWriter(str(path), 'group_size:2')
  for record in records:
    writer.write(record)
  writer.close()


@pytest.mark.parametrize('texts', [['one', 'zwü', 'three'], [ALL_BYTES, b'x']])
def test_rows_of_parquet_are_documents(tmp_path, texts):
  parquet(tmp_path / 'a.parquet', texts)
  documents = sources.find_documents(f'{tmp_path}/*')
  want = [t.encode() if isinstance(t, str) else t for t in texts]
  assert contents(documents) == want
  assert names(documents)[:2] == ['a.parquet:0', 'a.parquet:1']
  assert documents[0].read(1, 3) == want[0][1:3]
  assert contents(pickle.loads(pickle.dumps(documents))) == want


def test_records_are_documents(tmp_path):
  array_record(tmp_path / 'a.arrayrecord', [ALL_BYTES, b'two', b'three'])
  documents = sources.find_documents(f'{tmp_path}/*')
  assert contents(documents) == [ALL_BYTES, b'two', b'three']
  assert names(documents)[1] == 'a.arrayrecord:1'
  assert documents[0].read(254, 256) == b'\xfe\xff'
  with futures.ThreadPoolExecutor(4) as pool:
    read = list(pool.map(lambda i: documents[i % 3].read(0, 3), range(60)))
  assert read == [ALL_BYTES[:3], b'two', b'thr'] * 20


def test_arrays_are_documents_of_any_ids(tmp_path):
  np.save(tmp_path / 'a.npy', np.array([5, 999, 0], np.uint16))
  np.save(tmp_path / 'b.npy', np.arange(6).reshape(2, 3))
  documents = sources.find_documents(f'{tmp_path}/*', vocab_size=1000)
  assert names(documents) == ['a.npy', 'b.npy:0', 'b.npy:1']
  assert documents.lengths.tolist() == [3, 3, 3]
  assert documents[0].read(0, 2).tolist() == [5, 999]
  assert documents[2].read(1, 3).tolist() == [4, 5]
  assert documents[2].read(1, 3).dtype == np.int32


def test_arrays_of_ids_are_no_texts(tmp_path):
  np.save(tmp_path / 'a.npy', np.arange(100))
  write(tmp_path, b_txt=b'b')
  sources.find_documents(f'{tmp_path}/b.txt').require_bytes()
  with pytest.raises(
    ValueError, match=r'a\.npy: holds an array of ids, allowed'
  ):
    sources.find_documents(f'{tmp_path}/*').require_bytes()


@pytest.mark.parametrize(
  ('array', 'reason'),
  [
    (np.array([5, 1000]), 'has ids from 5 to 1000, allowed: 0 to 999'),
    (np.array([-1, 7]), 'has ids from -1 to 7'),
    (np.array([0.5]), '1 axes of float64'),
    (np.zeros((1, 1, 1), int), '3 axes'),
    (np.array(['a']), '1 axes of <U1'),
  ],
)
def test_an_array_of_no_ids_is_refused(tmp_path, array, reason):
  np.save(tmp_path / 'a.npy', array)
  with pytest.raises(ValueError, match=f'a.npy: (has )?{reason}'):
    sources.find_documents(f'{tmp_path}/a.npy', vocab_size=1000)


def test_other_ids_do_not_come_from_texts(tmp_path):
  write(tmp_path, a_txt=b'a')
  with pytest.raises(ValueError, match=r'data.vocab_size: got 300.*a\.txt'):
    sources.find_documents(f'{tmp_path}/*', vocab_size=300)
  with pytest.raises(ValueError, match=r'data.vocab_size: got 300.*hf:json'):
    sources.find_documents('hf:json', vocab_size=300)


def test_a_file_that_is_no_array_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', a=np.arange(3))
  (tmp_path / 'a.npz').rename(tmp_path / 'a.npy')
  write(tmp_path, b_npy=b'')
  for name in ('a.npy', 'b.npy'):
    with pytest.raises(ValueError, match=rf'{name}: .*allowed: a \.npy file'):
      sources.find_documents(f'{tmp_path}/{name}')


def test_array_record_files_that_are_cut_off_are_refused(tmp_path):
  path = tmp_path / 'a.arrayrecord'
  array_record(path, [b'one', b'two'])
  content = path.read_bytes()
  for damaged in (content[: len(content) // 2], ALL_BYTES * 9):
    path.write_bytes(damaged)
    records._record_file.cache_clear()
    with pytest.raises(ValueError, match='is damaged, allowed: an ArrayRecord'):
      sources.find_documents(str(path))


def test_damaged_files_and_empty_texts_are_refused(tmp_path):
  write(tmp_path, a_parquet=b'PAR1', b_arrayrecord=b'no records', c_npy=b'x')
  for name in ('a.parquet', 'b.arrayrecord', 'c.npy'):
    with pytest.raises(ValueError, match=rf'{name}: .*allowed'):
      sources.find_documents(f'{tmp_path}/{name}')
  parquet(tmp_path / 'd.parquet', ['a', ''])
  with pytest.raises(ValueError, match='of row 1 is empty'):
    sources.find_documents(f'{tmp_path}/d.parquet')
  pyarrow.parquet.write_table(
    pyarrow.table({'body': ['a']}), tmp_path / 'e.parquet'
  )
  with pytest.raises(ValueError, match='columns body, allowed: a column'):
    sources.find_documents(f'{tmp_path}/e.parquet')
