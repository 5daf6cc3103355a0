"""Arrays of ids: documents, headers that are wrong, files that change."""

import struct

import numpy as np
import pytest

from abstractinator.data import arrays, sources
from tests.helpers.document_files import names, write


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
    (np.array([True]), '1 axes of bool'),
    (np.array([{}]), 'Object arrays|1 axes of object'),
    (np.zeros((1, 1, 1), int), '3 axes'),
    (np.array(['a']), '1 axes of <U1'),
  ],
)
def test_an_array_of_no_ids_is_refused(tmp_path, array, reason):
  np.save(tmp_path / 'a.npy', array, allow_pickle=True)
  with pytest.raises(ValueError, match=f'a.npy: (has )?{reason}'):
    sources.find_documents(f'{tmp_path}/a.npy', vocab_size=1000)


def test_other_ids_do_not_come_from_texts(tmp_path):
  write(tmp_path, a_txt=b'a')
  with pytest.raises(ValueError, match=r'data.vocab_size: got 300.*a\.txt'):
    sources.find_documents(f'{tmp_path}/*', vocab_size=300)
  with pytest.raises(ValueError, match=r'data.vocab_size: got 300.*hf:json'):
    sources.find_documents('hf:json', vocab_size=300)


def test_a_file_that_is_no_array_is_refused(tmp_path):
  np.save(tmp_path / 'a.npy', np.arange(3))
  content = (tmp_path / 'a.npy').read_bytes()
  write(tmp_path, a_npy=content + b'more', b_npy=b'x', c_npy=content[:-1])
  for name in ('a.npy', 'b.npy', 'c.npy'):
    with pytest.raises(ValueError, match=rf'{name}: .*allowed: a \.npy file'):
      sources.find_documents(f'{tmp_path}/{name}')


def test_arrays_of_any_order_and_type_are_read(tmp_path):
  ids = np.arange(12).reshape(3, 4)
  for number, array in enumerate(
    (ids, ids.T.copy().T, ids.astype('>u2'), ids.astype(np.int8))
  ):
    np.save(tmp_path / f'{number}.npy', array)
    documents = sources.find_documents(f'{tmp_path}/{number}.npy', 12)
    found = [document.read(0, 4).tolist() for document in documents]
    assert found == ids.tolist()


@pytest.mark.parametrize(
  'header',
  [
    "{'descr': '<i8', 'fortran_order': False, 'shape': (3,",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (-3,)}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (3.0,)}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (2**70,)}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (9" + '9' * 99 + ',)}',
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1 << 40,)}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,)}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (4,)}",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
    "{'descr': 7, 'fortran_order': False, 'shape': (3,)}",
    "{'descr': '<i9999999999', 'fortran_order': False, 'shape': (3,)}",
    '(' * 3000,
    '-' * 9000 + '1',
    '{' + '9' * 9000 + ': 1}',
    '"""',
    '',
  ],
)
def test_a_wrong_header_is_one_line(tmp_path, header):
  path = tmp_path / 'a.npy'
  start = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header))
  path.write_bytes(start + header.encode() + bytes(24))
  with pytest.raises(ValueError) as info:
    sources.find_documents(str(path))
  message = str(info.value)
  assert message.startswith(f'{path}: has ')
  assert message.endswith('allowed: a .npy file of integers along 1 or 2 axes')
  assert '\n' not in message
  assert len(message) < 1000


def test_an_array_that_shrank_is_noticed(tmp_path):
  """The process would be killed where it reads what is no longer there."""
  path = tmp_path / 'a.npy'
  np.save(path, np.arange(100_000) % 256)
  (document,) = sources.find_documents(str(path))
  assert document.read(99_999, 100_000).tolist() == [99_999 % 256]
  with open(path, 'r+b') as file:
    file.truncate(4000)
  with pytest.raises(
    ValueError, match=r'a\.npy: (has changed|has 3872 bytes of elements)'
  ):
    document.read(99_999, 100_000)


def test_an_array_of_another_shape_is_noticed(tmp_path):
  path = tmp_path / 'a.npy'
  np.save(path, np.arange(6).reshape(2, 3))
  documents = sources.find_documents(str(path))
  np.save(path, np.arange(6))
  with pytest.raises(ValueError, match=r'a\.npy:1: has changed: got \(6,\)'):
    documents[1].read(0, 2)


def test_a_layout_is_that_of_the_file(tmp_path):
  np.save(tmp_path / 'a.npy', np.zeros((2, 5), np.uint16, 'F'))
  content = (tmp_path / 'a.npy').read_bytes()
  layout = arrays.read_layout(content, len(content))
  assert layout == ((2, 5), np.uint16, 'F', len(content) - 20)
