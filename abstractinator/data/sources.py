"""Ways to find documents: globs, data sets, the standard library."""

import glob
import hashlib
import os
import re
import stat
import sysconfig
from collections.abc import Iterator

from abstractinator.data import hub, records
from abstractinator.data.documents import (
  Document,
  Documents,
  MemoryDocument,
  encode_name,
  load_file,
)
from abstractinator.types import NUM_BYTES

# Parts of the standard library that are neither prose nor programs worth
# modelling: packages of third parties, tests, and long tables.
_SKIPPED_DIRECTORIES = frozenset(
  (
    '__pycache__ dist-packages encodings idlelib lib2to3 pydoc_data'
    ' site-packages test tests'
  ).split()
)


def find_documents(globs: str, vocab_size: int = NUM_BYTES) -> Documents:
  """Finds the documents of a corpus.

  A file is one document of arbitrary bytes. A file that ends in `.jsonl`,
  `.parquet`, `.arrayrecord` or `.npy` has several, see `records`; the first
  three are read to the end to learn where their documents are.

  Args:
    globs: Comma-separated globs; `**` matches any directories, `~` is the home
      directory. A comma in a path is written `?`. Directories are passed over,
      as are hidden files unless the glob has the dot. A data set `hf:NAME` may
      stand in the place of a glob, see `hub_documents`.
    vocab_size: Number of ids, 256 for bytes.

  Returns:
    The documents sorted by name, each file once, then those of data sets. A
    name is the path below the part of the glob that has no wildcard, with
    `:number` for one document of several in a file.

  Raises:
    ValueError: If a glob matches no file, a file cannot be read or is empty, a
      document has no text, or `vocab_size` is not 256 for documents of bytes.
  """
  names: dict[str, str] = {}
  patterns = [pattern.strip() for pattern in globs.split(',')]
  for pattern in patterns:
    if not pattern.startswith(hub.PREFIX):
      for path, name in _match(pattern):
        names.setdefault(path, name)
  documents: list[Document] = []
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


def parse_mixture(text: str) -> list[tuple[float, str]]:
  """Parses the setting `data.train`: one corpus, or several with weights.

  Args:
    text: Globs, or WEIGHT:GLOBS;WEIGHT:GLOBS and so on.

  Returns:
    Weight and globs of each corpus.

  Raises:
    ValueError: If a weight is missing or not above 0.
  """
  if ';' not in text and not re.match(r'[\d.]+:.', text):
    return [(1.0, text)]
  found = []
  for part in text.split(';'):
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+):(.+)', part.strip())
    if not match or not float(match[1]):
      raise ValueError(
        f'data.train: got {part.strip()!r}, allowed: WEIGHT:GLOBS with a weight'
        " above 0, such as '0.7:texts/*.txt;0.3:code/*.py'"
      )
    found.append((float(match[1]), match[2]))
  return found


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
    names += [
      _portable(os.path.relpath(os.path.join(directory, file), root))
      for file in files
      if file.endswith('.py') and not file.startswith('test_')
    ]
  documents: list[Document] = []
  for name in sorted(names):
    documents += _documents_of_file(os.path.join(root, name), name)
  if not documents:
    raise ValueError(
      f'data.train: the default corpus, {root}, has no .py files, allowed: a'
      ' Python with its library unzipped; or pass --config.data.train'
    )
  # Imported here: it is half a megabyte that only this corpus needs.
  from pydoc_data.topics import topics

  documents += [
    MemoryDocument(f'topics/{key}', text.encode())
    for key, text in sorted(topics.items())
  ]
  return Documents(documents)


def split(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
  """Holds out a fraction of the documents.

  The side of a document depends on its name and the fraction only, so that it
  stays on its side when documents are added.

  Args:
    documents: Documents of the corpus.
    fraction: Expected share of the documents held out, 0 < fraction < 1.

  Returns:
    The documents to train on and the documents to validate on, neither empty.

  Raises:
    ValueError: If a side would be empty.
  """
  sides: tuple[list[Document], list[Document]] = ([], [])
  for document in documents:
    digest = hashlib.sha1(encode_name(document.name)).digest()
    is_held_out = int.from_bytes(digest[:8], 'big') < fraction * 2**64
    sides[is_held_out].append(document)
  train, validation = sides
  if not train or not validation:
    raise ValueError(
      f'data.validation_fraction: {fraction} of {len(documents)}'
      f' documents puts {len(train)} in train and {len(validation)} in'
      ' validation, allowed: at least 1 in each; pass data.validation or more'
      ' documents'
    )
  return Documents(train), Documents(validation)


def _match(pattern: str) -> Iterator[tuple[str, str]]:
  """Yields (absolute path, name) of each file that `pattern` matches."""
  absolute = os.path.abspath(os.path.expanduser(pattern))
  root = os.path.dirname(absolute)
  while glob.has_magic(root):
    root = os.path.dirname(root)
  found = glob.glob(absolute, recursive=True)
  paths = [path for path in found if not os.path.isdir(path)]
  if not paths:
    raise ValueError(
      f'{pattern!r}: matches no file, allowed: comma-separated paths or globs'
      " such as 'texts/**/*.txt'"
    )
  for path in paths:
    yield path, _portable(os.path.relpath(path, root))


def _portable(name: str) -> str:
  return name.replace(os.sep, '/')


def _require_bytes(source: str, vocab_size: int) -> None:
  if vocab_size != NUM_BYTES:
    raise ValueError(
      f'data.vocab_size: got {vocab_size}, allowed: {NUM_BYTES} with {source};'
      ' other ids come from .npy files'
    )


def _documents_of_file(
  path: str, name: str, vocab_size: int = NUM_BYTES
) -> list[Document]:
  """Returns the documents of a file; none if it is empty."""
  kind = path.rpartition('.')[2]
  try:
    status = os.stat(path)
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(status.st_mode):
      raise ValueError(f'{path}: is not a regular file, allowed: only those')
    # Fails where `stat` does not, if the file may not be read.
    open(path, 'rb').close()
    if kind == 'npy':
      return records.array_documents(path, name, vocab_size)
    _require_bytes(path, vocab_size)
    if kind in records.FORMATS:
      return records.record_documents(path, name)
  except OSError as error:
    raise ValueError(
      f'{path}: cannot be read: {error.strerror}, allowed: readable files'
    ) from None
  size = status.st_size
  return [Document(name, size, path, load_file)] if size else []
