"""Files of many documents: JSON lines, Parquet, ArrayRecord, arrays of ids.

Each file is read once, to learn how many documents it has and how long they
are. After that any document can be read at random.
"""

import functools
import importlib
import json
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from abstractinator.data.documents import Document, as_bytes, read_slice

if TYPE_CHECKING:
  import pyarrow

# A row group is decompressed as a whole: the ones used last are kept.
_KEPT_GROUPS = 32
_KEPT_FILES = 64
_TEXT = 'text'
# Number of a record, its bytes of text, and the numbers by which it is found.
_Found = tuple[int, int, tuple[int, ...]]


def record_documents(path: str, name: str) -> list[Document]:
  """Returns the documents of a file that holds several.

  Reading any slice of one loads the whole text, which suits documents of some
  kilobytes; longer ones are better kept as files of their own.

  Args:
    path: Path of the file, whose ending is a key of `FORMATS`. In a `.jsonl`
      file each non-blank line is a document, an object whose `text` is a
      string; in a `.parquet` file each row, whose column `text` holds strings
      or bytes; in an ArrayRecord file each record, which may hold any bytes.
    name: Name of the file; a document is called `name:number`.

  Raises:
    ValueError: If it is no such file, or a text is missing or empty.
    OSError: If the file cannot be read.
  """
  scan, load = FORMATS[path.rpartition('.')[2]]
  return [
    Document(f'{name}:{number}', length, path, load, number, at)
    for number, length, at in scan(path)
  ]


def lengths_of_column(
  column: 'pyarrow.Array | pyarrow.ChunkedArray', where: str
) -> list[int]:
  """Returns the number of bytes of each text in a column.

  Args:
    column: Column of strings or bytes.
    where: Name of the file or data set and of the column, for messages.

  Raises:
    ValueError: If a text is missing or empty, or the column is of another type.
  """
  import pyarrow
  from pyarrow import compute

  allowed = 'allowed: strings or bytes, none of them empty'
  try:
    lengths = compute.binary_length(column).to_pylist()
  except pyarrow.ArrowNotImplementedError:
    raise ValueError(f'{where} is of type {column.type}, {allowed}') from None
  for row, length in enumerate(lengths):
    if not length:
      raise ValueError(f'{where} of row {row} is empty, {allowed}')
  return lengths


def array_documents(path: str, name: str, vocab_size: int) -> list[Document]:
  """Returns the documents of a `.npy` file of ids; none if it is empty.

  Args:
    path: Path of the file, which holds integers: along one axis they are one
      document, along two axes each row is one.
    name: Name of the file; a row of several is called `name:row`.
    vocab_size: Number of ids; each is from 0 to `vocab_size - 1`.

  Raises:
    ValueError: If the file holds anything else.
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
  # The array is mapped, not loaded: it may be larger than memory.
  low, high = int(array.min()), int(array.max())
  if low < 0 or high >= vocab_size:
    raise ValueError(
      f'{path}: has ids from {low} to {high}, allowed: 0 to {vocab_size - 1}'
      f' of data.vocab_size ({vocab_size})'
    )
  if array.ndim == 1:
    return [Document(name, len(array), path, _load_ids, is_bytes=False)]
  rows, length = array.shape
  return [
    Document(f'{name}:{i}', length, path, _load_ids, i, is_bytes=False)
    for i in range(rows)
  ]


def slice_of_text(
  document: Document, text: str | bytes, start: int, stop: int
) -> bytes:
  """Returns bytes `start` to `stop` of the whole text of a document.

  Raises:
    ValueError: If the text is not as long as it was when it was found.
  """
  content = as_bytes(text)
  document.require_size(len(content), document.length)
  return content[start:stop]


def import_extra(module: str, extra: str, where: str) -> ModuleType:
  """Imports a module of a library that comes with an extra of the package.

  Args:
    module: Name of the module, such as 'pyarrow.parquet'.
    extra: Name of the extra, such as 'parquet'.
    where: Name of the file or data set that needs it, for the message.

  Raises:
    ValueError: If the library is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ValueError(
      f"{where}: needs {module}, allowed: pip install 'abstractinator[{extra}]'"
    ) from error


def _text_of_line(line: bytes, where: str) -> bytes:
  """Returns the `text` of a line of a `.jsonl` file as UTF-8."""
  allowed = 'allowed: an object with a non-empty string "text"'
  try:
    value = json.loads(line)
    text = value.get(_TEXT) if isinstance(value, dict) else None
    content = text.encode() if isinstance(text, str) else None
  except ValueError as error:  # Not JSON, not UTF-8, or a lone surrogate.
    raise ValueError(f'{where}: {error}, {allowed}') from None
  if content is None:
    raise ValueError(f'{where}: has no string "text", {allowed}')
  if not content:
    raise ValueError(f'{where}: "text" is empty, {allowed}')
  return content


def _scan_lines(path: str) -> Iterator[_Found]:
  stop = 0
  with open(path, 'rb') as file:
    for number, line in enumerate(file, start=1):
      start, stop = stop, stop + len(line)
      if line.strip():
        text = _text_of_line(line, f'{path}:{number}')
        yield number, len(text), (start, stop)


def _load_line(document: Document, start: int, stop: int) -> bytes:
  line = read_slice(document.path, *document.at)
  text = _text_of_line(line, document.place)
  return slice_of_text(document, text, start, stop)


def _scan_parquet(path: str) -> Iterator[_Found]:
  parquet = import_extra('pyarrow.parquet', 'parquet', path)
  try:
    file = parquet.ParquetFile(path)
  # Arrow raises ValueErrors for wrong formats and OSErrors for files.
  except (ValueError, OSError) as error:
    raise ValueError(f'{path}: {error}, allowed: a Parquet file') from None
  if _TEXT not in file.schema_arrow.names:
    raise ValueError(
      f'{path}: has columns {", ".join(file.schema_arrow.names)}, allowed: a'
      f' column {_TEXT!r} of strings or bytes'
    )
  number = 0
  for group in range(file.num_row_groups):
    column = _parquet_group(path, group)
    lengths = lengths_of_column(column, f'{path}: {_TEXT!r}')
    for row, length in enumerate(lengths):
      yield number, length, (group, row)
      number += 1


def _load_row(document: Document, start: int, stop: int) -> bytes:
  group, row = document.at
  text = _parquet_group(document.path, group)[row].as_py()
  return slice_of_text(document, text, start, stop)


def _scan_array_record(path: str) -> Iterator[_Found]:
  try:
    file = _record_file(path)
  except (RuntimeError, ValueError) as error:
    raise ValueError(f'{path}: {error}, allowed: an ArrayRecord file') from None
  # The reader opens any file, and finds no records where there are none.
  if not file.ok():
    raise ValueError(f'{path}: is damaged, allowed: an ArrayRecord file')
  for number in range(file.num_records()):
    (value,) = file.read([number])
    if not value:
      raise ValueError(
        f'{path}: record {number} is empty, allowed: records with content'
      )
    yield number, len(value), ()


def _load_record(document: Document, start: int, stop: int) -> bytes:
  (value,) = _record_file(document.path).read([document.number])
  return slice_of_text(document, value, start, stop)


def _load_ids(document: Document, start: int, stop: int) -> np.ndarray:
  array = _array_file(document.path)
  ids = array if document.number is None else array[document.number]
  return np.asarray(ids[start:stop], np.int32)


# For each ending of a file: a function that finds its documents and one that
# loads a slice of a document.
FORMATS = {
  'jsonl': (_scan_lines, _load_line),
  'parquet': (_scan_parquet, _load_row),
  'arrayrecord': (_scan_array_record, _load_record),
  'array_record': (_scan_array_record, _load_record),
}


@functools.lru_cache(_KEPT_GROUPS)
def _parquet_group(path: str, group: int) -> 'pyarrow.ChunkedArray':
  parquet = import_extra('pyarrow.parquet', 'parquet', path)
  file = parquet.ParquetFile(path)
  return file.read_row_group(group, columns=[_TEXT]).column(0)


@functools.lru_cache(_KEPT_FILES)
def _record_file(path: str) -> Any:
  from array_record.python.array_record_module import ArrayRecordReader

  return ArrayRecordReader(path)


@functools.lru_cache(_KEPT_FILES)
def _array_file(path: str) -> np.ndarray:
  # `np.load` would accept archives as well.
  return np.lib.format.open_memmap(path, mode='r')
