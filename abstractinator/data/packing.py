"""Documents as rows of equal length, any of which can be read at any time."""

import operator
from typing import Any

import numpy as np

from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.data.documents import Documents
from abstractinator.types import Special


class PackedRows:
  """The stream of all documents, cut into rows.

  The stream is the bytes of each document and EOS, one document after the
  other. A document may be spread over rows; only its true end has EOS. Every
  id of the stream is in exactly one row, and padding ends a row.

  Attributes:
    documents: What is packed.
    sequence_length: Ids of a row.
    max_documents: How many documents a row may touch. A row that would touch
      more is closed before the first that is too many.
    vocab_size: How many ids there are; the specials come after them.
  """

  def __init__(
    self,
    documents: Documents,
    *,
    sequence_length: int,
    max_documents: int,
    vocab_size: int = NUM_BYTES,
  ):
    """Plans the rows; nothing is read.

    Args:
      documents: What to pack.
      sequence_length: Ids of a row, S, at least 1.
      max_documents: How many documents a row may touch, at least 1: with 1,
        each begins a row of its own, and padding ends it.
      vocab_size: How many ids there are, 256 for bytes.

    Raises:
      ValueError: If a number is too small.
    """
    if sequence_length < 1:
      raise ValueError(
        f'sequence_length: got {sequence_length}, allowed: at least 1'
      )
    if max_documents < 1:
      raise ValueError(
        f'max_documents: got {max_documents}, allowed: at least 1'
      )
    self.documents = documents
    self.sequence_length = sequence_length
    self.max_documents = max_documents
    self.vocab_size = vocab_size
    # Where in the stream each document's EOS is over.
    self._ends = np.cumsum(documents.lengths + 1)
    self._num_ids = int(self._ends[-1]) if documents.num_documents else 0
    # Row starts, or None where row i simply starts at i * S.
    self._starts = self._early_starts() if self._may_close_early() else None

  @property
  def num_documents(self) -> int:
    """How many documents there are."""
    return self.documents.num_documents

  @property
  def num_bytes(self) -> int:
    """How many bytes the documents have; EOS is not counted."""
    return self._num_ids - self.num_documents

  def __len__(self) -> int:
    if self._starts is None:
      return -(-self._num_ids // self.sequence_length)
    return len(self._starts)

  def __repr__(self) -> str:
    return f'PackedRows({len(self)} rows of {self.sequence_length} ids)'

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Reads a row.

    Args:
      index: Which row, 0 to len - 1.

    Returns:
      ids: [S] int32, bytes, EOS and, at the end of the row, PAD.
      document: [S] int32, the document of each id, counted from 0 in the row;
        -1 on padding.
      row: [] int32, `index`.

    Raises:
      IndexError: If there is no such row.
      ValueError: If a file has changed its size.
      OSError: If a file can no longer be read.
    """
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    start, stop = self._start(index), self._start(index + 1)
    row = self.empty_row()
    ids_S, document_S = row['ids'], row['document']
    first = int(np.searchsorted(self._ends, start, side='right'))
    document = first
    position = start
    while position < stop:
      end = int(self._ends[document])
      length = int(self.documents.lengths[document])
      taken = min(stop, end) - position
      offset = position - (end - length - 1)
      content = self.documents.read(
        document, offset, min(offset + taken, length)
      )
      at = position - start
      if isinstance(content, bytes):
        content = np.frombuffer(content, np.uint8)
      ids_S[at : at + len(content)] = content
      # What the bytes leave free of the slice is the document's EOS, if any.
      ids_S[at + len(content) : at + taken] = self.vocab_size + Special.EOS
      document_S[at : at + taken] = document - first
      position += taken
      document += 1
    return row | {'row': np.int32(index)}

  def empty_row(self) -> dict[str, np.ndarray]:
    """Returns a row of padding, with the row number -1 of no row."""
    return empty_row(self.sequence_length, self.vocab_size)

  def fingerprint(self) -> dict[str, Any]:
    """Returns what a checkpoint notes of the rows, ready for JSON."""
    return {
      'num_documents': self.num_documents,
      'num_bytes': self.num_bytes,
      'num_rows': len(self),
      'sha256': self.documents.fingerprint(),
    }

  def _start(self, index: int) -> int:
    """Where in the stream row `index` starts; its end for index len."""
    if self._starts is None:
      return min(index * self.sequence_length, self._num_ids)
    return int(self._starts[index]) if index < len(self) else self._num_ids

  def _may_close_early(self) -> bool:
    """Whether a row of full length might touch too many documents."""
    # It would hold the last id of some document, the next max_documents - 1
    # documents whole, and the first id of one more.
    between = self._ends[self.max_documents - 1 : -1]
    between = between - self._ends[: len(between)]
    return bool((between + 2 <= self.sequence_length).any())

  def _early_starts(self) -> np.ndarray:
    """Walks over the rows, returns where each starts, [len] int64."""
    starts = []
    start = 0
    while start < self._num_ids:
      starts.append(start)
      first = int(np.searchsorted(self._ends, start, side='right'))
      last = min(first + self.max_documents, self.num_documents) - 1
      start = min(start + self.sequence_length, int(self._ends[last]))
    return np.array(starts, np.int64)


def empty_row(
  sequence_length: int, vocab_size: int = NUM_BYTES
) -> dict[str, np.ndarray]:
  """Returns a row of padding, with the row number -1 of no row."""
  return {
    'ids': np.full(sequence_length, vocab_size + Special.PAD, np.int32),
    'document': np.full(sequence_length, -1, np.int32),
    'row': np.int32(-1),
  }
