"""Files of many documents that can be read at random.

Parquet, with its rows by groups; ArrayRecord, by record; arrays of integers.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from abstractinator.data.documents import Document

if TYPE_CHECKING:
  import pyarrow

# Groups of rows are decompressed as a whole: the ones used last are kept.
_KEPT_GROUPS = 32
_KEPT_FILES = 64
_TEXT = 'text'


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetDocument:
  """The column `text` of a row of a Parquet file, a string or bytes."""

  is_bytes: ClassVar[bool] = True
  name: str
  length: int
  path: str
  group: int
  row: int

  @property
  def place(self) -> str:
    """Path, group of rows and row."""
    return f'{self.path}:{self.group}:{self.row}'

  def read(self, start: int, stop: int) -> bytes:
    """Reads the slice; ValueError if the row is not what it was."""
    column = _parquet_group(self.path, self.group)
    value = column[self.row].as_py()
    return _checked(value, self.place, self.length)[start:stop]


@dataclasses.dataclass(frozen=True, slots=True)
class RecordDocument:
  """A record of an ArrayRecord file: its bytes, whatever they are."""

  is_bytes: ClassVar[bool] = True
  name: str
  length: int
  path: str
  record: int

  @property
  def place(self) -> str:
    """Path and number of the record."""
    return f'{self.path}:{self.record}'

  def read(self, start: int, stop: int) -> bytes:
    """Reads the slice; ValueError if the record is not what it was."""
    (value,) = _record_file(self.path).read([self.record])
    return _checked(value, self.place, self.length)[start:stop]


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayDocument:
  """A `.npy` file of one axis, or a row of one of two: any ids."""

  is_bytes: ClassVar[bool] = False
  name: str
  length: int
  path: str
  row: int | None

  @property
  def place(self) -> str:
    """Path, and row if there are several."""
    return self.path if self.row is None else f'{self.path}:{self.row}'

  def read(self, start: int, stop: int) -> np.ndarray:
    """Reads the slice, int32; ValueError if it is shorter than it was."""
    array = _array_file(self.path)
    ids = (array if self.row is None else array[self.row])[start:stop]
    if len(ids) != stop - start:
      raise ValueError(_changed(self.place, len(ids), stop - start))
    return np.asarray(ids, np.int32)


def parquet_documents(path: str, name: str) -> list[Document]:
  """Documents of a Parquet file; its column `text` is read once.

  Raises:
    ValueError: If it has no such column, or a text is missing or empty.
  """
  parquet = _parquet()
  try:
    file = parquet.ParquetFile(path)
  # Arrow's errors of formats are ValueErrors, those of files OSErrors.
  except (ValueError, OSError) as error:
    raise ValueError(f'{path}: {error}, allowed: a Parquet file') from None
  if _TEXT not in file.schema_arrow.names:
    raise ValueError(
      f'{path}: has columns {", ".join(file.schema_arrow.names)}, allowed: a'
      f' column {_TEXT!r} of strings or bytes'
    )
  documents = []
  for group in range(file.num_row_groups):
    column = _parquet_group(path, group)
    lengths = lengths_of_column(column, path)
    for row, length in enumerate(lengths):
      number = len(documents)
      documents.append(
        ParquetDocument(f'{name}:{number}', length, path, group, row)
      )
  return documents


def lengths_of_column(column: 'pyarrow.ChunkedArray', where: str) -> list[int]:
  """Bytes of each text of a column.

  Raises:
    ValueError: If one is missing or empty, or they are no texts.
  """
  import pyarrow
  from pyarrow import compute

  allowed = 'allowed: strings or bytes, none of them empty'
  kind = column.type
  is_text = any(
    check(kind)
    for check in (
      pyarrow.types.is_string,
      pyarrow.types.is_large_string,
      pyarrow.types.is_binary,
      pyarrow.types.is_large_binary,
    )
  )
  if not is_text:
    raise ValueError(f'{where}: {_TEXT!r} is of type {kind}, {allowed}')
  lengths = compute.binary_length(column).to_pylist()
  for row, length in enumerate(lengths):
    if not length:
      raise ValueError(f'{where}: {_TEXT!r} of row {row} is empty, {allowed}')
  return lengths


def record_documents(path: str, name: str) -> list[Document]:
  """Documents of an ArrayRecord file, which is read once.

  Raises:
    ValueError: If it is none, or a record is empty.
  """
  try:
    file = _record_file(path)
  except (RuntimeError, ValueError) as error:
    raise ValueError(f'{path}: {error}, allowed: an ArrayRecord file') from None
  # It opens anything, and finds no records in what is no such file.
  if not file.ok():
    raise ValueError(f'{path}: is damaged, allowed: an ArrayRecord file')
  documents = []
  for number in range(file.num_records()):
    (value,) = file.read([number])
    if not value:
      raise ValueError(
        f'{path}: record {number} is empty, allowed: records with content'
      )
    documents.append(
      RecordDocument(f'{name}:{number}', len(value), path, number)
    )
  return documents


def array_documents(path: str, name: str, vocab_size: int) -> list[Document]:
  """Documents of a `.npy` file, which is read once.

  Args:
    path: The file: integers, of one axis for one document, of two for as many
      as it has rows.
    name: Of the file.
    vocab_size: Ids are below.

  Raises:
    ValueError: If it is anything else.
  """
  try:
    array = _array_file(path)
  except ValueError as error:
    raise ValueError(f'{path}: {error}, allowed: a .npy file') from None
  if array.dtype.kind not in 'iu' or array.ndim not in (1, 2):
    raise ValueError(
      f'{path}: has {array.ndim} axes of {array.dtype}, allowed: 1 or 2 axes of'
      ' integers'
    )
  if not array.size:
    return []
  # A part at a time: the file may be larger than memory.
  low, high = 0, 0
  for part in np.array_split(array, -(-array.size // 2**24)):
    low, high = min(low, int(part.min())), max(high, int(part.max()))
  if low < 0 or high >= vocab_size:
    raise ValueError(
      f'{path}: has ids from {low} to {high}, allowed: 0 to {vocab_size - 1}'
      f' of data.vocab_size ({vocab_size})'
    )
  if array.ndim == 1:
    return [ArrayDocument(name, len(array), path, None)]
  rows, length = array.shape
  return [ArrayDocument(f'{name}:{i}', length, path, i) for i in range(rows)]


def _checked(value: Any, place: str, length: int) -> bytes:
  content = value.encode() if isinstance(value, str) else value
  if len(content) != length:
    raise ValueError(_changed(place, len(content), length))
  return content


def _changed(place: str, found: int, length: int) -> str:
  return f'{place}: has {found} ids, allowed: {length} as when the run began'


def _parquet() -> Any:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError(
      'data: .parquet files are read by pyarrow only, allowed: pip install'
      " 'abstractinator[parquet]'"
    ) from error
  return parquet


@functools.lru_cache(_KEPT_GROUPS)
def _parquet_group(path: str, group: int) -> 'pyarrow.ChunkedArray':
  file = _parquet().ParquetFile(path)
  return file.read_row_group(group, columns=[_TEXT]).column(0)


@functools.lru_cache(_KEPT_FILES)
def _record_file(path: str) -> Any:
  from array_record.python.array_record_module import ArrayRecordReader

  return ArrayRecordReader(path)


@functools.lru_cache(_KEPT_FILES)
def _array_file(path: str) -> np.ndarray:
  # `np.load` would take archives as well.
  return np.lib.format.open_memmap(path, mode='r')
