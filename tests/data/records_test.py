"""Files of many documents: Parquet and ArrayRecord."""

import io
import pickle
from concurrent import futures

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from abstractinator.data import sources
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


def test_array_record_files_that_are_cut_off_are_refused(tmp_path):
  path = tmp_path / 'a.arrayrecord'
  array_record(path, [b'one', b'two'])
  content = path.read_bytes()
  for damaged in (content[: len(content) // 2], ALL_BYTES * 9):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='is damaged, allowed: an ArrayRecord'):
      sources.find_documents(str(path))


def test_damaged_files_are_refused(tmp_path):
  write(tmp_path, a_parquet=b'PAR1', b_arrayrecord=b'no records')
  for name in ('a.parquet', 'b.arrayrecord'):
    with pytest.raises(ValueError, match=rf'{name}: .*allowed'):
      sources.find_documents(f'{tmp_path}/{name}')


def test_empty_and_null_texts_are_passed_over_by_the_row_of_the_file(
  tmp_path, caplog
):
  parquet(tmp_path / 'a.parquet', ['a', 'b', 'c', None, '', 'd', ''])
  array_record(tmp_path / 'b.arrayrecord', [b'e', b'', b'f'])
  documents = sources.find_documents(f'{tmp_path}/*')
  assert b''.join(contents(documents)) == b'abcdef'
  assert names(documents) == [
    *(f'a.parquet:{row}' for row in (0, 1, 2, 5)),
    *('b.arrayrecord:0', 'b.arrayrecord:2'),
  ]
  assert (
    f'null: 1 (the first is {tmp_path}/a.parquet:3),'
    f' empty: 3 (the first is {tmp_path}/a.parquet:4)'
  ) in caplog.text


@pytest.mark.parametrize(
  'kind',
  [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.binary(),
    pyarrow.binary_view(),
    pyarrow.binary(3),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
  ],
  ids=str,
)
def test_texts_of_any_type_are_read(tmp_path, kind):
  texts = ['one', 'two', None, 'one']
  array = pyarrow.array(texts, pyarrow.string()).cast(pyarrow.binary())
  if kind == pyarrow.binary(3):
    array = pyarrow.array([t and t.encode() for t in texts], kind)
  elif pyarrow.types.is_dictionary(kind):
    array = pyarrow.array(texts).dictionary_encode()
  else:
    array = array.cast(kind)
  table = pyarrow.table({'text': array})
  pyarrow.parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=3)
  documents = sources.find_documents(f'{tmp_path}/*')
  assert contents(documents) == [b'one', b'two', b'one']


def test_the_column_is_the_one_that_is_named_text(tmp_path):
  path = tmp_path / 'a.parquet'
  nested = pyarrow.array([{'a': 'wrong'}] * 2)
  for columns, expected in (
    ({'text.a': ['wrong'] * 2, 'text': ['x', 'y']}, [b'x', b'y']),
    ({'texts': nested, 'text': ['x', 'y']}, [b'x', b'y']),
    ({'body': ['a']}, 'columns body, allowed: one column'),
    ({'text': [1, 2]}, "'text' is of type int64, allowed"),
    ({'text': [1.5, 2]}, "'text' is of type double, allowed"),
    ({'text': nested}, "'text' is of type struct"),
  ):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    if isinstance(expected, str):
      with pytest.raises(ValueError, match=expected):
        sources.find_documents(str(path))
    else:
      assert contents(sources.find_documents(str(path))) == expected
  table = pyarrow.Table.from_arrays([[1], ['x']], names=['text', 'text'])
  pyarrow.parquet.write_table(table, path)
  with pytest.raises(ValueError, match='columns text, text, allowed: one'):
    sources.find_documents(str(path))


def test_a_footer_with_other_numbers_of_rows_loses_none(tmp_path):
  path = tmp_path / 'a.parquet'
  texts = [f'text {i}' for i in range(9)]
  parquet(path, texts)
  content = path.read_bytes()
  footer = len(content) - 8 - int.from_bytes(content[-8:-4], 'little')
  wrong = 0
  for at in range(footer, len(content) - 8):
    damaged = bytearray(content)
    # The smallest bit of a number in Thrift's compact form is its sign.
    damaged[at] ^= 2
    try:
      found = pyarrow.parquet.read_metadata(io.BytesIO(damaged))
      groups = [
        found.row_group(i).num_rows for i in range(found.num_row_groups)
      ]
    except (OSError, pyarrow.ArrowException):
      continue
    if sum(groups) != found.num_rows or groups[:4] != [2, 2, 2, 2]:
      wrong += 1
      path.write_bytes(damaged)
      with pytest.raises(ValueError, match=r'allowed'):
        sources.find_documents(str(path))
  assert wrong > 3


def test_a_row_that_is_gone_is_noticed(tmp_path):
  path = tmp_path / 'a.parquet'
  parquet(path, ['a', 'b'])
  documents = sources.find_documents(str(path))
  parquet(path, ['a'])
  with pytest.raises(ValueError, match=r'parquet:1: has changed'):
    documents[1].read(0, 1)
