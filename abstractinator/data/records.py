"""Files of many documents: JSON lines, Parquet, ArrayRecord.

Each file is read once, to learn how many documents it has and how long they
are. After that any document can be read at random.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from abstractinator.data.compressed import open_content, read_slice
from abstractinator.data.documents import (
  Document,
  Skipped,
  as_bytes,
  one_line,
)
from abstractinator.data.extras import import_extra
from abstractinator.data.globs import version

if TYPE_CHECKING:
  import pyarrow

# A row group is decompressed as a whole: the ones used last are kept.
_KEPT_GROUPS = 32
_KEPT_FILES = 64
_TEXT = 'text'
# Number of a record, bytes of its text, None for null, and how it is found.
_Found = tuple[int, int | None, tuple[Any, ...]]


def record_documents(
  path: str, name: str, kind: str, compression: str, skipped: Skipped
) -> list[Document]:
  """Returns the documents of a file that holds several.

  Reading any slice of one loads the whole text, which suits documents of some
  kilobytes; longer ones are better kept as files of their own.

  Args:
    path: Path of the file.
    name: Name of the file; a document is called `name:number`.
    kind: Key of `FORMATS`. In JSON lines each non-blank line is a document, an
      object whose `text` is a string; in Parquet each row, whose column `text`
      holds strings or bytes; in ArrayRecord each record, of any bytes.
    compression: See `open_content`; JSON lines only.
    skipped: Takes texts that are empty or null.

  Raises:
    ValueError: If it is no such file, or a text is missing; `.json` files may
      hold other JSON.
    OSError: If the file cannot be read.
  """
  scan, load = FORMATS[kind]
  documents: list[Document] = []
  number = None
  for number, length, at in scan(path, compression):
    if length:
      documents.append(
        Document(f'{name}:{number}', length, path, load, number, at)
      )
    else:
      skipped.note('null' if length is None else 'empty', f'{path}:{number}')
  if number is None:
    skipped.note('empty', path)
  return documents


def bytes_of_column(
  column: 'pyarrow.Array | pyarrow.ChunkedArray', where: str
) -> Any:
  """Returns a column of texts as one of bytes, `large_binary`.

  Args:
    column: Column of strings or bytes, as they are, as views or as numbers of a
      dictionary.
    where: Name of the file or data set and of the column, for messages.

  Raises:
    ValueError: If the column is of another type.
  """
  from pyarrow import types

  kind = column.type
  if types.is_dictionary(kind):
    kind = kind.value_type
  # Integers, too, could be cast to bytes.
  if not any(
    is_text(kind)
    for is_text in (
      *(types.is_string, types.is_large_string, types.is_string_view),
      *(types.is_binary, types.is_large_binary, types.is_binary_view),
      *(types.is_fixed_size_binary, types.is_null),
    )
  ):
    raise ValueError(
      f'{where} is of type {column.type}, allowed: strings or bytes'
    )
  return column.cast('large_binary')


def lengths_of_column(column: Any) -> list[int | None]:
  """Returns the bytes of each text of `bytes_of_column`; None for null."""
  from pyarrow import compute

  return compute.binary_length(column).to_pylist()


def slice_of_text(
  document: Document, text: str | bytes | None, start: int, stop: int
) -> bytes:
  """Returns bytes `start` to `stop` of the whole text of a document.

  Raises:
    ValueError: If the text is not as long as it was when it was found.
  """
  content = as_bytes(text or b'')
  document.require_size(len(content), document.length)
  return content[start:stop]


def _text_of_line(line: bytes, where: str) -> bytes | None:
  """Returns the `text` of a line of JSON as UTF-8; None for null."""
  allowed = 'allowed: an object with a string "text"'
  if where.rpartition(':')[0].lower().endswith('.json'):
    allowed += ' on each line; or `raw:` before the path to read its bytes'
  try:
    value = json.loads(line)
    text = value[_TEXT] if isinstance(value, dict) else 0
    if text is None:
      return None
    if isinstance(text, str):
      return text.encode()
  # Not JSON, not UTF-8, or a lone surrogate.
  except ValueError as error:
    raise ValueError(f'{where}: {one_line(error)}, {allowed}') from None
  except RecursionError:
    raise ValueError(f'{where}: is nested too deeply, {allowed}') from None
  except KeyError:
    pass
  raise ValueError(f'{where}: has no string "text", {allowed}')


def _scan_lines(path: str, compression: str) -> Iterator[_Found]:
  stop = 0
  with open_content(path, compression) as file:
    for number, line in enumerate(file, start=1):
      start, stop = stop, stop + len(line)
      if line.strip():
        text = _text_of_line(line, f'{path}:{number}')
        length = None if text is None else len(text)
        yield number, length, (start, stop, compression)


def _load_line(document: Document, start: int, stop: int) -> bytes:
  line = read_slice(document.path, *document.at)
  text = _text_of_line(line, document.place)
  return slice_of_text(document, text, start, stop)


def _scan_parquet(path: str, _: str) -> Iterator[_Found]:
  metadata = _parquet_file(path).metadata
  number = 0
  for group in range(metadata.num_row_groups):
    lengths = lengths_of_column(_parquet_group(path, version(path), group))
    _require_rows(path, len(lengths), metadata.row_group(group).num_rows)
    for row, length in enumerate(lengths):
      yield number, length, (group, row)
      number += 1
  _require_rows(path, number, metadata.num_rows)


def _require_rows(path: str, found: int, expected: int) -> None:
  if found != expected:
    raise ValueError(
      f'{path}: is damaged: has {found} rows, allowed: {expected} as its footer'
      ' says'
    )


def _load_row(document: Document, start: int, stop: int) -> bytes:
  group, row = document.at
  column = _parquet_group(document.path, version(document.path), group)
  text = column[row].as_py() if row < len(column) else None
  return slice_of_text(document, text, start, stop)


def _scan_array_record(path: str, _: str) -> Iterator[_Found]:
  for number in range(_record_file(path, version(path)).num_records()):
    yield number, len(_read_record(path, number)), ()


def _load_record(document: Document, start: int, stop: int) -> bytes:
  assert document.number is not None
  content = _read_record(document.path, document.number)
  return slice_of_text(document, content, start, stop)


def _read_record(path: str, number: int) -> bytes:
  try:
    (value,) = _record_file(path, version(path)).read([number])
  except (RuntimeError, ValueError, IndexError) as error:
    raise ValueError(
      f'{path}: record {number}: {one_line(error)}, allowed: a whole'
      ' ArrayRecord file'
    ) from None
  return value


# For each kind of file: a function that finds its documents and one that loads
# a slice of a document.
_LINES = _scan_lines, _load_line
_RECORDS = _scan_array_record, _load_record
FORMATS = {
  'jsonl': _LINES,
  'ndjson': _LINES,
  'json': _LINES,
  'parquet': (_scan_parquet, _load_row),
  'arrayrecord': _RECORDS,
  'array_record': _RECORDS,
}


def _parquet_file(path: str) -> Any:
  """Opens a Parquet file that has one column of texts."""
  parquet = import_extra('pyarrow.parquet', 'parquet', path)
  with _arrow_errors(path):
    file = parquet.ParquetFile(path)
    names = file.schema_arrow.names
  if names.count(_TEXT) != 1:
    raise ValueError(
      f'{path}: has columns {", ".join(names)}, allowed: one column {_TEXT!r}'
      ' of strings or bytes'
    )
  return file


@functools.lru_cache(_KEPT_GROUPS)
def _parquet_group(path: str, _: tuple[int, ...], group: int) -> Any:
  """Reads the texts of a row group of a version of a file, as bytes."""
  file = _parquet_file(path)
  with _arrow_errors(path):
    column = file.read_row_group(group, columns=[_TEXT]).column(_TEXT)
  return bytes_of_column(column, f'{path}: {_TEXT!r}')


@contextlib.contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
  try:
    yield
  # Arrow raises its own for wrong formats and OSErrors for files; a damaged
  # file brings about others as well.
  except Exception as error:
    raise ValueError(
      f'{path}: {one_line(error)}, allowed: a whole Parquet file'
    ) from error


@functools.lru_cache(_KEPT_FILES)
def _record_file(path: str, _: tuple[int, ...]) -> Any:
  from array_record.python.array_record_module import ArrayRecordReader

  try:
    file = ArrayRecordReader(path)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f'{path}: {one_line(error)}, allowed: an ArrayRecord file'
    ) from None
  # The reader opens any file, and finds no records where there are none.
  if not file.ok():
    raise ValueError(f'{path}: is damaged, allowed: an ArrayRecord file')
  return file
