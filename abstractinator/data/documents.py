"""Documents: named bytes, or other ids, of which any slice can be read.

No file stays open and only names and positions are kept in memory, so that
documents can be read from many threads and sent to other processes.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

_MAX_REASON = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
  """One document under a name: bytes, or ids of another vocabulary.

  Attributes:
    name: Path below the root of the corpus, with '/' between its parts.
    length: Number of bytes or ids, at least 1.
    path: Path of the file, or name of the data set, that holds it.
    load: Function that reads ids `start` to `stop` of the document. It is
      defined at the top of a module, so that documents can be pickled.
    number: Number of the document in `path`; None if it is the only one.
    at: Further values by which `load` finds the document in `path`.
    is_bytes: True if `load` returns bytes, False if it returns int32 ids.
  """

  name: str
  length: int
  path: str
  load: Callable[['Document', int, int], bytes | np.ndarray]
  number: int | None = None
  at: tuple[Any, ...] = ()
  is_bytes: bool = True

  @property
  def place(self) -> str:
    """Path and number, which no other document has."""
    return self.path if self.number is None else f'{self.path}:{self.number}'

  def require_size(self, size: int, expected: int) -> None:
    """Raises ValueError if a size is not what it was when it was found."""
    if size != expected:
      raise ValueError(
        f'{self.place}: has changed: got {size} bytes or ids, allowed:'
        f' {expected} as when the run began'
      )

  def read(self, start: int, stop: int) -> bytes | np.ndarray:
    """Returns bytes or ids `start` to `stop`.

    Args:
      start: First byte or id.
      stop: Position after the last one, at most `length`.

    Returns:
      `stop - start` bytes, or as many ids, int32.

    Raises:
      ValueError: If the file has changed its size.
      OSError: If the file can no longer be read.
    """
    content = self.load(self, start, stop)
    self.require_size(len(content), stop - start)
    return content

  def read_bytes(self) -> bytes:
    """Returns all bytes of a document that holds bytes; see `read`."""
    return bytes(self.read(0, self.length))


class MemoryDocument(Document):
  """A document held in memory: bytes, or int32 ids."""

  def __init__(self, name: str, content: bytes | np.ndarray):
    super().__init__(
      name,
      len(content),
      path=name,
      load=_load_content,
      at=(content,),
      is_bytes=isinstance(content, bytes),
    )


class Documents(tuple[Document, ...]):
  """An ordered collection of documents."""

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Bytes of each document, or ids, [number of documents] int64."""
    return np.array([document.length for document in self], np.int64)

  def require_bytes(self) -> None:
    """Raises ValueError if a document holds other ids than bytes."""
    for document in self:
      if not document.is_bytes:
        raise ValueError(
          f'{document.place}: holds an array of ids, allowed: bytes; .npy files'
          ' serve training only'
        )

  def sha256(self) -> str:
    """Returns a sha256 in hex over names and lengths, wherever the root is."""
    digest = hashlib.sha256()
    for document in self:
      digest.update(encode_name(document.name))
      digest.update(b'\0%d\n' % document.length)
    return digest.hexdigest()


class Skipped:
  """Documents that are passed over, counted by reason."""

  def __init__(self) -> None:
    self._counts: collections.Counter[str] = collections.Counter()
    self._first: dict[str, str] = {}

  def note(self, reason: str, place: str) -> None:
    """Counts a document.

    Args:
      reason: Name for documents of a kind, such as 'empty' or 'broken links'.
      place: Name of the document or its file.
    """
    self._counts[reason] += 1
    self._first.setdefault(reason, place)

  def __str__(self) -> str:
    """Counts and first place of each reason; '' if there are none."""
    return ', '.join(
      f'{reason}: {count} (the first is {self._first[reason]})'
      for reason, count in self._counts.items()
    )


def one_line(error: Exception) -> str:
  """Returns the message of an error of a library on one line, shortened."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= _MAX_REASON else f'{text[:_MAX_REASON]}...'


def encode_name(name: str) -> bytes:
  """Returns the bytes by which a name is hashed."""
  # Names of files need not be UTF-8; Python carries the rest as surrogates.
  return name.encode('utf-8', 'surrogateescape')


def as_bytes(text: str | bytes) -> bytes:
  """Returns a text as bytes, a string as UTF-8."""
  return text.encode() if isinstance(text, str) else text


def _load_content(
  document: Document, start: int, stop: int
) -> bytes | np.ndarray:
  (content,) = document.at
  return content[start:stop]
