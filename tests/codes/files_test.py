"""Files of codes: what is written is read, and nothing else is."""

import io
import tracemalloc
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from abstractinator.codes import files
from abstractinator.codes.codes import Codes

# Two codes for each segment; the second text has two rows.
CODES = [
  Codes(np.array([7, 3, 9, 4], np.int32), np.array([2], np.int32), 1),
  Codes(np.array([1, 2, 3, 4, 5, 6], np.int32), np.array([1, 2], np.int32), 1),
]
WHOLE = {
  'codes_N': np.arange(6),
  'count_B': np.array([1, 2]),
  'num_rows_T': np.array([1, 1]),
  'level': np.array(0),
  'queries': np.array(2),
}
ROWS = {'codes': [[1, 2], [3, 4, 5, 6]], 'counts': [[1], [2]], 'level': [0, 0]}


def write_npz(path, **changes):
  np.savez(path, **WHOLE | changes)
  return str(path)


def write_parquet(path, **changes):
  pyarrow.parquet.write_table(pyarrow.table(ROWS | changes), path)
  return str(path)


@pytest.mark.parametrize('kind', ['npz', 'parquet'])
def test_codes_are_read_as_they_were_written(tmp_path, kind):
  path = str(tmp_path / f'a.{kind}')
  files.write_codes(path, CODES)
  for found, expected in zip(files.read_codes(path), CODES, strict=True):
    np.testing.assert_array_equal(found.codes_N, expected.codes_N)
    np.testing.assert_array_equal(found.count_B, expected.count_B)
    assert found.codes_N.dtype == found.count_B.dtype == np.int32
    assert found.level == 1


def test_other_types_of_integers_are_read(tmp_path):
  small = {name: x.astype(np.uint8) for name, x in WHOLE.items()}
  lists = pyarrow.large_list(pyarrow.uint16())
  codes = pyarrow.array(ROWS['codes'], lists)
  for path in (
    write_npz(tmp_path / 'a.npz', **small),
    write_parquet(tmp_path / 'a.parquet', codes=codes),
  ):
    found = files.read_codes(path)
    assert [len(x.codes_N) for x in found] == [2, 4]
    assert [x.count_B.tolist() for x in found] == [[1], [2]]


@pytest.mark.parametrize(
  'changes',
  [
    {'codes_N': np.array([1.7] * 6)},
    {'codes_N': np.array([True] * 6)},
    {'codes_N': np.array(['1'] * 6)},
    {'codes_N': np.array([{}] * 6)},
    {'codes_N': np.array([1 << 33] * 6)},
    {'codes_N': np.arange(5)},
    {'codes_N': np.arange(6)[None]},
    {'count_B': np.array([4, -1])},
    {'count_B': np.array([0, 3])},
    {'count_B': np.array([1 << 62, -(1 << 62) + 3])},
    {'num_rows_T': np.array([3, -1])},
    {'num_rows_T': np.array([1])},
    {'num_rows_T': np.array([], int), 'count_B': np.array([], int)},
    {'level': np.array(-1)},
    {'level': np.array(0.5)},
    {'queries': np.array(0)},
    {'queries': np.array(3)},
  ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, changes):
  path = write_npz(tmp_path / 'a.npz', **changes)
  assert_refused(path)
  files.read_codes(write_npz(tmp_path / 'b.npz'))


@pytest.mark.parametrize(
  'changes',
  [
    {'codes': [[1.7, 2], [3, 4, 5, 6]]},
    {'codes': [[True, True], [True] * 4]},
    {'codes': [['1', '2'], ['3'] * 4]},
    {'codes': [[1, None], [3, 4, 5, 6]]},
    {'codes': [None, [3, 4, 5, 6]]},
    {'codes': [[1 << 33, 2], [3, 4, 5, 6]]},
    {'codes': [[1, 2, 3], [3, 4, 5, 6]]},
    {'codes': [1, 2]},
    {'counts': [[1], [3]]},
    {'counts': [[1], [3, -1]]},
    {'counts': [[1], []]},
    {'counts': [[1.0], [2.0]]},
    {'level': [0, 1]},
    {'level': [-1, -1]},
    {'level': [None, 0]},
    {'level': [0.5, 0.5]},
  ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, changes):
  path = write_parquet(tmp_path / 'a.parquet', **changes)
  assert_refused(path)
  files.read_codes(write_parquet(tmp_path / 'b.parquet'))


def assert_refused(path):
  with pytest.raises(ValueError) as info:
    files.read_codes(path)
  message = str(info.value)
  assert message.startswith(f'{path}: is no file of codes, allowed: ')
  assert '\n' not in message
  assert len(message) < 1000


def test_a_member_that_says_another_size_is_refused(tmp_path):
  """A checksum is compared only where all bytes are read."""
  files.write_codes(str(tmp_path / 'a.npz'), CODES)
  source = zipfile.ZipFile(tmp_path / 'a.npz')
  contents = {name: source.read(name) for name in source.namelist()}
  tracemalloc.start()
  # The last one asks for 1 GiB, in a header of the same length.
  for old, new in (
    (b'(10,)', b'(9,) '),
    (b'(10,)', b'(1<<40,)'),
    (b'(10,), }' + b' ' * 7, b'(268435456,), }'),
  ):
    assert any(old in content for content in contents.values())
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as archive:
      for name, content in contents.items():
        archive.writestr(name, content.replace(old, new))
    assert_refused(str(tmp_path / 'b.npz'))
  assert tracemalloc.get_traced_memory()[1] < 1 << 20
  tracemalloc.stop()


def test_a_changed_bit_of_a_parquet_page_is_noticed(tmp_path):
  path = str(tmp_path / 'a.parquet')
  content = files.to_bytes(path, CODES)
  footer = len(content) - 8 - int.from_bytes(content[-8:-4], 'little')
  refused = 0
  for at in range(4, footer, 2):
    changed = bytearray(content)
    changed[at] ^= 1
    with open(path, 'wb') as file:
      file.write(changed)
    try:
      found = files.read_codes(path)
    except ValueError:
      refused += 1
    else:
      assert [x.codes_N.tolist() for x in found] == [
        x.codes_N.tolist() for x in CODES
      ]
      assert [x.count_B.tolist() for x in found] == [[2], [1, 2]]
  assert refused > 20


def test_archives_by_other_methods_are_refused(tmp_path):
  buffer = io.BytesIO()
  np.save(buffer, np.array(0))
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_LZMA) as archive:
    for name in WHOLE:
      archive.writestr(f'{name}.npy', buffer.getvalue())
  assert_refused(str(tmp_path / 'a.npz'))
