"""Ways to find documents: globs, data sets, the standard library."""

import errno
import hashlib
import os
import re
import stat
import sysconfig

from absl import logging

from abstractinator.data import hub, records
from abstractinator.data.arrays import array_documents
from abstractinator.data.compressed import (
  find_compression,
  open_content,
  read_slice,
  without_ending,
)
from abstractinator.data.documents import (
  Document,
  Documents,
  MemoryDocument,
  Skipped,
  encode_name,
)
from abstractinator.data.globs import RealFile, find_files
from abstractinator.types import NUM_BYTES

# Before a glob whose files are documents of bytes, whatever they hold.
_RAW = 'raw:'
_ARRAY = 'npy'
_NEVER_COMPRESSED = {_ARRAY, *records.FORMATS} - {'jsonl', 'ndjson', 'json'}
# Errors of a link that leads nowhere or in circles.
_BROKEN = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

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
  `.ndjson`, `.json`, `.parquet`, `.arrayrecord` or `.npy` has several, see
  `records` and `arrays`; all but the last are read to the end to learn where
  their documents are. Files that are compressed are decompressed, see
  `compressed`. Empty and null documents and broken links are passed over, which
  the log says.

  Args:
    globs: Comma-separated globs, see `globs`. A comma in a path is written `?`.
      After `raw:` each file of a glob is one document of its bytes as they are.
      A data set `hf:NAME` may stand in the place of a glob, see
      `hub_documents`.
    vocab_size: Number of ids, 256 for bytes.

  Returns:
    The documents sorted by name, each real file once, then those of data sets.
    A name is the path below the part of the glob that has no wildcard, with
    `:number` for one document of several in a file.

  Raises:
    ValueError: If a glob matches no file, no document is left, a file cannot be
      read, or `vocab_size` is not 256 for documents of bytes.
  """
  files: dict[RealFile, tuple[str, str, bool]] = {}
  skipped = Skipped()
  patterns = [pattern.strip() for pattern in globs.split(',')]
  for pattern in patterns:
    if not pattern.startswith(hub.PREFIX):
      is_raw = pattern.startswith(_RAW)
      found = find_files(pattern.removeprefix(_RAW), skipped)
      for file, (path, name) in found.items():
        files.setdefault(file, (path, name, is_raw))
  documents: list[Document] = []
  # By name alone: an order by path would depend on where the roots are.
  for path, name, is_raw in sorted(files.values(), key=lambda file: file[1]):
    documents += _documents_of_file(path, name, vocab_size, skipped, is_raw)
  for pattern in dict.fromkeys(patterns):
    if pattern.startswith(hub.PREFIX):
      _require_bytes(pattern, vocab_size)
      documents += hub.hub_documents(pattern, skipped)
  if not documents:
    raise ValueError(
      f'{globs!r}: has no document with content, allowed: at least 1;'
      f' passed over: {skipped}'
    )
  if str(skipped):
    logging.warning('%r: passed over: %s', globs, skipped)
  return Documents(documents)


def parse_mixture(text: str) -> list[tuple[float, str]]:
  """Parses the setting `data.train`: one corpus, or several with weights.

  Args:
    text: Globs, or WEIGHT:GLOBS;WEIGHT:GLOBS and so on. A semicolon in a path
      is written `?`.

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
        " above 0, such as '0.7:texts/*.txt;0.3:code/*.py', with '?' for a"
        ' semicolon in a path'
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
      os.path.relpath(os.path.join(directory, file), root).replace(os.sep, '/')
      for file in files
      if file.endswith('.py') and not file.startswith('test_')
    ]
  documents: list[Document] = []
  for name in sorted(names):
    # A library has empty files, which say nothing.
    path = os.path.join(root, name)
    documents += _documents_of_file(path, name, NUM_BYTES, Skipped())
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
  """Holds out a fraction of the documents, at least one and never all.

  The side of a document depends on the hash of its name and the fraction only,
  so that it stays on its side when documents are added. Where a side would be
  empty, the document whose hash is nearest to it is put there.

  Args:
    documents: Documents of the corpus.
    fraction: Expected share of the documents held out, 0 < fraction < 1.

  Returns:
    The documents to train on and the documents to validate on, neither empty.

  Raises:
    ValueError: If there are fewer than two documents.
  """
  count = len(documents)
  if count < 2:
    raise ValueError(
      f'data.validation_fraction: {fraction} of {count} documents puts {count}'
      ' in train and 0 in validation, allowed: at least 1 in each; pass'
      ' data.validation or more documents'
    )
  hashes = [_hash(document.name) for document in documents]
  wanted = sum(value < fraction * 2**64 for value in hashes)
  by_hash = sorted(range(count), key=hashes.__getitem__)
  held_out = set(by_hash[: min(max(wanted, 1), count - 1)])
  sides: tuple[list[Document], list[Document]] = ([], [])
  for number, document in enumerate(documents):
    sides[number in held_out].append(document)
  train, validation = sides
  return Documents(train), Documents(validation)


def _hash(name: str) -> int:
  """Returns a hash of a name that is the same everywhere, below 2^64."""
  return int.from_bytes(hashlib.sha1(encode_name(name)).digest()[:8], 'big')


def _require_bytes(source: str, vocab_size: int) -> None:
  if vocab_size != NUM_BYTES:
    raise ValueError(
      f'data.vocab_size: got {vocab_size}, allowed: {NUM_BYTES} with {source};'
      ' other ids come from .npy files'
    )


def _documents_of_file(
  path: str, name: str, vocab_size: int, skipped: Skipped, is_raw: bool = False
) -> list[Document]:
  """Returns the documents of a file that have content."""
  try:
    status = os.stat(path)
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(status.st_mode):
      raise ValueError(f'{path}: is not a regular file, allowed: only those')
    compression = '' if is_raw else find_compression(path)
    kind = '' if is_raw else without_ending(path).rpartition('.')[2]
    if compression and kind in _NEVER_COMPRESSED:
      raise ValueError(
        f'{path}: is in the format {compression}, allowed: .{kind} that is not'
        ' compressed as a whole'
      )
    if kind != _ARRAY:
      _require_bytes(path, vocab_size)
    if kind in records.FORMATS and status.st_size:
      return records.record_documents(path, name, kind, compression, skipped)
    if kind == _ARRAY and status.st_size:
      documents = array_documents(path, name, vocab_size)
    else:
      documents = _whole_file(path, name, compression)
  except OSError as error:
    if error.errno in _BROKEN and os.path.islink(path):
      skipped.note('broken links', path)
      return []
    raise ValueError(
      f'{path}: cannot be read: {error.strerror}, allowed: readable files'
    ) from None
  if not documents:
    skipped.note('empty', path)
  return documents


def _whole_file(path: str, name: str, compression: str) -> list[Document]:
  """Returns a file as one document; none if it is empty."""
  with open_content(path, compression) as file:
    size = file.seek(0, os.SEEK_END)
  at = (compression,)
  return [Document(name, size, path, _load_file, at=at)] if size else []


def _load_file(document: Document, start: int, stop: int) -> bytes:
  return read_slice(document.path, start, stop, *document.at)
