"""Where documents come from: globs, data sets, the standard library."""

import glob
import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator

from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.data import hub, records
from abstractinator.data.documents import (
  Document,
  Documents,
  FileDocument,
  LineDocument,
  MemoryDocument,
  encode_name,
  text_of_line,
)

# What of the standard library is no prose or program worth modelling: other
# people's packages, tests, and long tables.
_SKIPPED_DIRECTORIES = frozenset(
  {
    '__pycache__',
    'dist-packages',
    'encodings',
    'idlelib',
    'lib2to3',
    'pydoc_data',
    'site-packages',
    'test',
    'tests',
  }
)


def find_documents(globs: str, vocab_size: int = NUM_BYTES) -> Documents:
  """Finds the documents of a corpus.

  A file is one document of arbitrary bytes. Of a `.jsonl` file each non-blank
  line is one: an object whose `text` is the document, encoded as UTF-8; of a
  `.parquet` file each row, by its column `text`; of an `.arrayrecord` file each
  record, whatever its bytes. Such files are read once, to the end, to learn
  where their documents are. A `.npy` file holds ids, see `array_documents`.

  Args:
    globs: Comma-separated globs; `**` matches any directories, `~` is the home
      directory. A comma in a path is written `?`. Directories are passed over,
      as are hidden files unless the glob has the dot. Or data sets `hf:NAME`,
      see `hub_documents`.
    vocab_size: How many ids there are; 256 for bytes.

  Returns:
    The documents sorted by name, each file once, then those of data sets. A
    name is the path below the part of the glob that has no wildcard, with
    `:number` for a file of several.

  Raises:
    ValueError: If a glob matches no file, a file cannot be read or is empty, or
      a document in it has no text, or is of other ids.
  """
  names = {}
  patterns = [pattern.strip() for pattern in globs.split(',')]
  for pattern in patterns:
    if not pattern.startswith(hub.PREFIX):
      for path, name in _match(pattern):
        names.setdefault(path, name)
  documents = []
  # By name alone: an order by path would depend on where the roots are.
  for path, name in sorted(names.items(), key=lambda item: item[1]):
    found = _documents_of_file(path, name, vocab_size)
    if not found:
      raise ValueError(f'{path}: is empty, allowed: files with content')
    documents += found
  for pattern in dict.fromkeys(patterns):
    if pattern.startswith(hub.PREFIX):
      _require_bytes(pattern, vocab_size)
      documents += hub.hub_documents(pattern)
  return Documents(documents)


def _require_bytes(source: str, vocab_size: int) -> None:
  if vocab_size != NUM_BYTES:
    raise ValueError(
      f'data.vocab_size: got {vocab_size}, allowed: {NUM_BYTES} with {source};'
      ' other ids come from .npy files'
    )


def standard_library() -> Documents:
  """Finds the text that every Python installation carries.

  Returns:
    The sources of the standard library without tests and tables, sorted by
    name, then the topics of the language reference that `help()` shows.

  Raises:
    ValueError: If Python runs without the sources of its library.
  """
  root = sysconfig.get_paths()['stdlib']
  names = []
  for directory, children, files in os.walk(root):
    # In place, so that os.walk does not descend into them.
    children[:] = [c for c in children if c not in _SKIPPED_DIRECTORIES]
    below = os.path.relpath(directory, root)
    names += [
      _portable(os.path.normpath(os.path.join(below, file)))
      for file in files
      if file.endswith('.py') and not file.startswith('test_')
    ]
  documents = []
  for name in sorted(names):
    documents += _documents_of_file(os.path.join(root, name), name)
  if not documents:
    raise ValueError(
      f'data.train: the default corpus, {root}, has no .py files, allowed: a'
      ' Python with its library unzipped; or pass --config.data.train'
    )
  # Half a megabyte that only this corpus needs.
  from pydoc_data.topics import topics

  documents += [
    MemoryDocument(f'topics/{key}', text.encode())
    for key, text in sorted(topics.items())
  ]
  return Documents(documents)


def split(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
  """Holds out a fraction of the documents.

  The side of a document depends on its name and the fraction only, so that it
  stays where it is when others are added.

  Args:
    documents: What to split.
    fraction: Expected share of validation, 0 < fraction < 1.

  Returns:
    Train and validation, neither of them empty.

  Raises:
    ValueError: If a side would be empty.
  """
  sides = ([], [])
  for index in range(documents.num_documents):
    digest = hashlib.sha1(encode_name(documents.name(index))).digest()
    is_held_out = int.from_bytes(digest[:8], 'big') < fraction * 2**64
    sides[is_held_out].append(index)
  train, validation = sides
  if not train or not validation:
    raise ValueError(
      f'data.validation_fraction: {fraction} of {documents.num_documents}'
      f' documents puts {len(train)} in train and {len(validation)} in'
      ' validation, allowed: at least 1 in each; pass data.validation or more'
      ' documents'
    )
  return documents.select(train), documents.select(validation)


def _match(pattern: str) -> Iterator[tuple[str, str]]:
  """Yields (absolute path, name) of each file that `pattern` matches."""
  absolute = os.path.abspath(os.path.expanduser(pattern))
  root = os.path.dirname(absolute)
  while glob.has_magic(root):
    root = os.path.dirname(root)
  paths = glob.glob(absolute, recursive=True)
  paths = [path for path in paths if not os.path.isdir(path)]
  if not paths:
    raise ValueError(
      f'{pattern!r}: matches no file, allowed: comma-separated paths or globs'
      " such as 'texts/**/*.txt'"
    )
  for path in paths:
    yield path, _portable(os.path.relpath(path, root))


def _portable(name: str) -> str:
  return name.replace(os.sep, '/')


def _documents_of_file(
  path: str, name: str, vocab_size: int = NUM_BYTES
) -> list[Document]:
  """Returns the documents of a file; none if it is empty."""
  try:
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise ValueError(f'{path}: is not a regular file, allowed: only those')
    with open(path, 'rb') as file:
      if path.endswith('.npy'):
        return records.array_documents(path, name, vocab_size)
      _require_bytes(path, vocab_size)
      if path.endswith('.parquet'):
        return records.parquet_documents(path, name)
      if path.endswith(('.arrayrecord', '.array_record')):
        return records.record_documents(path, name)
      if path.endswith('.jsonl'):
        return _documents_of_lines(file, path, name)
      length = os.fstat(file.fileno()).st_size
  except OSError as error:
    raise ValueError(
      f'{path}: cannot be read: {error.strerror}, allowed: readable files'
    ) from None
  return [FileDocument(name, length, path)] if length else []


def _documents_of_lines(
  lines: Iterable[bytes], path: str, name: str
) -> list[Document]:
  documents = []
  stop = 0
  for number, line in enumerate(lines, start=1):
    start, stop = stop, stop + len(line)
    if line.strip():
      length = len(text_of_line(line, f'{path}:{number}'))
      documents.append(
        LineDocument(f'{name}:{number}', length, path, number, start, stop)
      )
  return documents
