"""Documents of Hugging Face data sets: `hf:NAME` or `hf:NAME?OPTIONS`.

With `documents=N` the first so many are streamed and kept in memory; without,
the data set is downloaded once, by the library, and read from its files.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from abstractinator.data.documents import Document, MemoryDocument
from abstractinator.data.records import lengths_of_column

PREFIX = 'hf:'
_DEFAULTS = {
  # Of the data set, if it has several.
  'config': '',
  'split': 'train',
  # Column of the text.
  'field': 'text',
  # How many to stream; all of them, not streamed, if empty.
  'documents': '',
  # Of a local builder such as `json`: its files, globs allowed.
  'data_files': '',
  'revision': '',
}


@dataclasses.dataclass(frozen=True, slots=True)
class HubDocument:
  """A row of a data set that lies in files of the library."""

  is_bytes: ClassVar[bool] = True
  name: str
  length: int
  source: str
  row: int

  @property
  def place(self) -> str:
    """Source and row."""
    return f'{self.source}:{self.row}'

  def read(self, start: int, stop: int) -> bytes:
    """Reads the slice."""
    data, field = _open(self.source)
    return _encoded(data[self.row][field])[start:stop]


def hub_documents(source: str) -> list[Document]:
  """Documents of a source.

  Args:
    source: `hf:NAME?key=value&...`, with any of `config`, `split` (train),
      `field` (text), `documents`, `data_files` and `revision`.

  Returns:
    One a row, named by data set, split and number.

  Raises:
    ValueError: If it cannot be read, or a text is missing or empty.
  """
  name, options = _parse(source)
  label = f'{name}/{options["split"]}'
  if options['documents']:
    return _streamed(source, label, options)
  data, field = _open(source)
  _require_field(source, data.column_names, field)
  # `with_format` gives the table as it lies in the files.
  column = data.with_format('arrow')[:][field]
  return [
    HubDocument(f'{label}:{row}', length, source, row)
    for row, length in enumerate(lengths_of_column(column, source))
  ]


def _streamed(source: str, label: str, options: dict[str, str]):
  count, field = int(options['documents']), options['field']
  documents = []
  for number, example in enumerate(_examples(source, count)):
    _require_field(source, list(example), field)
    value = example[field]
    where = f'{source}: {field!r} of row {number}'
    allowed = 'allowed: strings or bytes, none of them empty'
    if value is not None and not isinstance(value, (str, bytes)):
      raise ValueError(f'{where} is of type {type(value).__name__}, {allowed}')
    if not value:
      raise ValueError(f'{where} is empty, {allowed}')
    documents.append(MemoryDocument(f'{label}:{number}', _encoded(value)))
  return documents


def _examples(source: str, count: int) -> Iterator[dict[str, Any]]:
  """The first rows of a stream."""
  data = iter(itertools.islice(_load(source, streaming=True), count))
  while True:
    try:
      example = next(data)
    except StopIteration:
      return
    # Builders and file systems of all kinds stand behind it.
    except Exception as error:
      raise ValueError(_unreadable(source, error)) from error
    yield example


def _unreadable(source: str, error: Exception) -> str:
  text = ' '.join(str(error).split()) or type(error).__name__
  return f'{source}: {text}, allowed: a data set that can be read'


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
def _open(source: str) -> tuple[Any, str]:
  return _load(source, streaming=False), _parse(source)[1]['field']


def _load(source: str, streaming: bool) -> Any:
  try:
    import datasets
  except ImportError as error:
    raise ValueError(
      f'{source}: read by the library datasets only, allowed: pip install'
      " 'abstractinator[hf]'"
    ) from error
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


def _encoded(value: Any) -> bytes:
  return value.encode() if isinstance(value, str) else value
