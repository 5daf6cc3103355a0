"""Documents: named bytes of which any slice can be read at any time.

Nothing is kept open and only names and places are kept in memory, so that
documents can be read from many threads and sent to other processes. Documents
of integers other than bytes are arrays, see `records`.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import numpy as np


class Document(Protocol):
  """One document: arbitrary bytes, or other ids, under a name.

  Attributes:
    name: Where it stands below the root of its corpus, with '/' between parts.
    length: How many bytes it has, at least 1.
    place: Where it lies, other than all other documents.
    is_bytes: Whether `read` gives bytes, not an array of ids.
  """

  is_bytes: ClassVar[bool]
  name: str
  length: int

  @property
  def place(self) -> str: ...

  def read(self, start: int, stop: int) -> bytes | np.ndarray:
    """Returns bytes `start` to `stop` of the document."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileDocument:
  """A whole file."""

  is_bytes: ClassVar[bool] = True
  name: str
  length: int
  path: str

  @property
  def place(self) -> str:
    """Its path."""
    return self.path

  def read(self, start: int, stop: int) -> bytes:
    """Reads the slice; ValueError if the file is now shorter than it was."""
    return _read_slice(self.path, start, stop)


@dataclasses.dataclass(frozen=True, slots=True)
class LineDocument:
  """The text of one line of a `.jsonl` file.

  Reading any slice parses the whole line, which suits documents of some
  kilobytes; longer ones are better kept as files of their own.
  """

  is_bytes: ClassVar[bool] = True
  name: str
  length: int
  path: str
  line: int
  line_start: int
  line_stop: int

  @property
  def place(self) -> str:
    """Path and line."""
    return f'{self.path}:{self.line}'

  def read(self, start: int, stop: int) -> bytes:
    """Reads the slice; ValueError if the line is not what it was."""
    line = _read_slice(self.path, self.line_start, self.line_stop)
    text = text_of_line(line, f'{self.path}:{self.line}')
    if len(text) != self.length:
      raise ValueError(
        f'{self.path}:{self.line}: has {len(text)} bytes of text, allowed:'
        f' {self.length} as when the run began'
      )
    return text[start:stop]


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryDocument:
  """A document held in memory."""

  is_bytes: ClassVar[bool] = True
  name: str
  content: bytes

  @property
  def place(self) -> str:
    """Its name."""
    return self.name

  @property
  def length(self) -> int:
    """How many bytes it has."""
    return len(self.content)

  def read(self, start: int, stop: int) -> bytes:
    """Returns the slice."""
    return self.content[start:stop]


class Documents:
  """An ordered collection of documents that can be read at random."""

  def __init__(self, documents: Sequence[Document]):
    self._documents = tuple(documents)

  @property
  def num_documents(self) -> int:
    """How many documents there are."""
    return len(self._documents)

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Bytes of each document, [num_documents] int64."""
    return np.array([d.length for d in self._documents], np.int64)

  def name(self, index: int) -> str:
    """Returns the name of document `index`, relative to its corpus."""
    return self._documents[index].name

  def places(self) -> set[str]:
    """Returns where all of them lie."""
    return {document.place for document in self._documents}

  def require_bytes(self) -> None:
    """Refuses documents of other ids, for who reads texts.

    Raises:
      ValueError: If one of them is no bytes.
    """
    for document in self._documents:
      if not document.is_bytes:
        raise ValueError(
          f'{document.place}: holds an array of ids, allowed: bytes; .npy files'
          ' are there to train on'
        )

  def read(self, index: int, start: int, stop: int) -> bytes | np.ndarray:
    """Reads a slice of a document.

    Args:
      index: Which document.
      start: First byte.
      stop: Byte after the last, at most the document's length.

    Returns:
      `stop - start` bytes, or an int32 array of as many other ids.

    Raises:
      ValueError: If what lies behind the document has changed its size.
      OSError: If it can no longer be read.
    """
    return self._documents[index].read(start, stop)

  @classmethod
  def concatenate(cls, parts: Sequence[Self]) -> Self:
    """Returns the documents of several collections, in that order."""
    return cls([d for part in parts for d in part._documents])

  def select(self, indices: Sequence[int]) -> Self:
    """Returns a collection of the documents `indices`, in that order."""
    return type(self)([self._documents[i] for i in indices])

  def fingerprint(self) -> str:
    """Returns a sha256 in hex over names and lengths, wherever the root is."""
    digest = hashlib.sha256()
    for document in self._documents:
      digest.update(encode_name(document.name))
      digest.update(b'\0%d\n' % document.length)
    return digest.hexdigest()


def encode_name(name: str) -> bytes:
  """Returns the bytes by which a name is hashed."""
  # Names of files need not be UTF-8; Python carries the rest as surrogates.
  return name.encode('utf-8', 'surrogateescape')


def text_of_line(line: bytes, where: str) -> bytes:
  """Returns the text of a line of a `.jsonl` file.

  Args:
    line: A JSON object whose `text` is a string.
    where: Path and number of the line, for messages.

  Returns:
    The text as UTF-8, at least 1 byte.

  Raises:
    ValueError: If the line is anything else.
  """
  allowed = 'allowed: an object with a non-empty string "text"'
  try:
    value = json.loads(line)
    text = value.get('text') if isinstance(value, dict) else None
    content = text.encode() if isinstance(text, str) else None
  except ValueError as error:  # Not JSON, not UTF-8, or a lone surrogate.
    raise ValueError(f'{where}: {error}, {allowed}') from None
  if content is None:
    raise ValueError(f'{where}: has no string "text", {allowed}')
  if not content:
    raise ValueError(f'{where}: "text" is empty, {allowed}')
  return content


def _read_slice(path: str, start: int, stop: int) -> bytes:
  with open(path, 'rb', buffering=0) as file:
    file.seek(start)
    content = file.read(stop - start)
  if len(content) != stop - start:
    raise ValueError(
      f'{path}: ends before byte {stop}, allowed: files that stay as they were'
      ' when the run began'
    )
  return content
