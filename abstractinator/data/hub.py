"""Documents of Hugging Face data sets: `hf:NAME` or `hf:NAME?OPTIONS`.

With the option `documents=N` the first N rows are streamed and kept in memory;
without it, the library downloads the whole data set once and reads its files.
"""

import functools
from typing import Any
from urllib.parse import parse_qsl

from abstractinator.data.documents import (
  Document,
  MemoryDocument,
  Skipped,
  as_bytes,
  one_line,
)
from abstractinator.data.extras import import_extra
from abstractinator.data.records import (
  bytes_of_column,
  lengths_of_column,
  slice_of_text,
)

PREFIX = 'hf:'
_DEFAULTS = {
  # Configuration of the data set, if it has several.
  'config': '',
  'split': 'train',
  # Column of the text.
  'field': 'text',
  # Number of rows to stream; if empty, all rows are read from files.
  'documents': '',
  # Files of a local builder such as `json`, globs allowed.
  'data_files': '',
  'revision': '',
}


def hub_documents(source: str, skipped: Skipped) -> list[Document]:
  """Returns the documents of a data set, one for each row.

  Args:
    source: `hf:NAME?key=value&...`, with any of `config`, `split` (default
      train), `field` (default text), `documents`, `data_files` and `revision`.
    skipped: Takes texts that are empty or null.

  Returns:
    The documents; their names consist of data set, split and number.

  Raises:
    ValueError: If it cannot be read, or its texts are of another type.
  """
  name, options = _parse(source)
  label, field = f'{name}/{options["split"]}', options['field']
  where = f'{source}: {field!r}'
  if options['documents']:
    texts = _first_texts(source, field, int(options['documents']))
    import pyarrow  # The library datasets has it.

    try:
      texts_of_arrow = pyarrow.array(texts)
    # Texts of several types, or with lone surrogates.
    except (ValueError, TypeError) as error:
      raise ValueError(_unreadable(where, error)) from error
    column = bytes_of_column(texts_of_arrow, where)
  else:
    texts = None
    data = _open(source)
    _require_field(source, data.column_names, field)
    # `with_format` gives the table as it lies in the files.
    column = bytes_of_column(data.with_format('arrow')[:][field], where)
  documents: list[Document] = []
  for row, length in enumerate(lengths_of_column(column)):
    name_of_row = f'{label}:{row}'
    if not length:
      skipped.note('null' if length is None else 'empty', f'{source}:{row}')
    elif texts:
      documents.append(MemoryDocument(name_of_row, as_bytes(texts[row])))
    else:
      documents.append(
        Document(name_of_row, length, source, _load_row, row, at=(field,))
      )
  return documents


def _first_texts(source: str, field: str, count: int) -> list[Any]:
  data = _load(source, streaming=True)
  columns, texts = [field], []
  try:
    for row in data.take(count):
      columns = list(row)
      texts.append(row.get(field))
  # Builders and file systems of all kinds stand behind a stream.
  except Exception as error:
    raise ValueError(_unreadable(source, error)) from error
  _require_field(source, columns, field)
  return texts


def _unreadable(source: str, error: Exception) -> str:
  return f'{source}: {one_line(error)}, allowed: a data set that can be read'


def _parse(source: str) -> tuple[str, dict[str, str]]:
  name, _, query = source.removeprefix(PREFIX).partition('?')
  given = dict(parse_qsl(query, keep_blank_values=True))
  unknown = sorted(set(given) - set(_DEFAULTS))
  if unknown or not name:
    raise ValueError(
      f'{source}: got {", ".join(unknown) or "no name"}, allowed:'
      f' hf:NAME?KEY=VALUE&... with {", ".join(_DEFAULTS)}'
    )
  options = _DEFAULTS | given
  count = options['documents']
  if count and not (count.isdecimal() and int(count)):
    raise ValueError(f'{source}: documents: got {count!r}, allowed: above 0')
  return name, options


@functools.lru_cache
def _open(source: str) -> Any:
  return _load(source, streaming=False)


def _load_row(document: Document, start: int, stop: int) -> bytes:
  (field,) = document.at
  text = _open(document.path)[document.number][field]
  return slice_of_text(document, text, start, stop)


def _load(source: str, streaming: bool) -> Any:
  datasets = import_extra('datasets', 'hf', source)
  name, options = _parse(source)
  try:
    return datasets.load_dataset(
      name,
      options['config'] or None,
      split=options['split'],
      data_files=options['data_files'] or None,
      revision=options['revision'] or None,
      streaming=streaming,
    )
  except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
    raise ValueError(_unreadable(source, error)) from error


def _require_field(source: str, columns: list[str], field: str) -> None:
  if field not in columns:
    raise ValueError(
      f'{source}: field: got {field!r}, allowed: {", ".join(columns)}'
    )
