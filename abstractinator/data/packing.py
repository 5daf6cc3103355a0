"""Documents as rows of equal length, any of which can be read at any time."""

from typing import Any, Protocol

import numpy as np

from abstractinator.data.documents import Documents
from abstractinator.types import NUM_BYTES, PAD_ID, Special


class Rows(Protocol):
  """Rows of equal length, numbered from 0, that can be read at random.

  Attributes:
    sequence_length: Number of ids in a row, S.
    num_documents: Number of documents in all rows.
    num_ids: Number of ids in all rows, without padding.
    pad_id: Id on padding.
  """

  sequence_length: int
  num_documents: int
  num_ids: int
  pad_id: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Reads a row.

    Args:
      index: Number of the row, 0 to len - 1.

    Returns:
      ids: [S] int32, ids and, at the end of the row, padding.
      document: [S] int32, the document of each id, counted from 0 in the row;
        -1 on padding.
      row: [] int32, `index`.

    Raises:
      IndexError: If there is no such row.
      ValueError: If a file has changed its size.
      OSError: If a file can no longer be read.
    """

  def identity(self) -> dict[str, Any]:
    """Returns the JSON by which a checkpoint recognises the rows."""


class PackedRows(Rows):
  """The stream of all documents, cut into rows.

  The stream is the bytes of each document and EOS, one document after the
  other. A document may be spread over rows; only its true end has EOS. Every
  id of the stream is in exactly one row, and padding ends a row.

  Attributes:
    documents: Documents that are packed.
    max_documents: Maximum number of documents in a row. A row that would hold
      more ends before the first that is too many.
    vocab_size: Number of ids; EOS and PAD come after them.
  """

  def __init__(
    self,
    documents: Documents,
    *,
    sequence_length: int,
    max_documents: int,
    vocab_size: int = NUM_BYTES,
  ):
    """Computes where rows start; no document is read.

    Args:
      documents: Documents to pack, at least one.
      sequence_length: Number of ids in a row, S, at least 1.
      max_documents: Maximum number of documents in a row, at least 1: with 1,
        each begins a row of its own, and padding ends its last row.
      vocab_size: Number of ids, 256 for bytes.

    Raises:
      ValueError: If there are no documents.
    """
    if not documents:
      raise ValueError('data: has no documents, allowed: at least 1')
    self.documents = documents
    self.sequence_length = sequence_length
    self.max_documents = max_documents
    self.vocab_size = vocab_size
    self.pad_id = vocab_size + Special.PAD
    # Position in the stream after the last id of each document.
    self._ends = np.cumsum(self._sizes())
    self.num_ids = int(self._ends[-1])
    self.num_documents = len(documents)
    # Positions in the stream where rows start, and its end.
    self._starts = np.append(self._row_starts(), self.num_ids)

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    start, stop = self._starts[index : index + 2].tolist()
    first, last = np.searchsorted(self._ends, (start, stop - 1), side='right')
    row = empty_row(self.sequence_length, self.pad_id)
    for document in range(first, last + 1):
      begin = int(self._ends[document - 1]) if document else 0
      end = min(stop, int(self._ends[document]))
      at = slice(max(begin, start) - start, end - start)
      row['ids'][at] = self._ids(document, max(start - begin, 0), end - begin)
      row['document'][at] = document - first
    return row | {'row': np.array(index, np.int32)}

  def identity(self) -> dict[str, Any]:
    return {
      'num_documents': self.num_documents,
      'num_bytes': self.num_ids - self.num_documents,
      'num_rows': len(self),
      'sha256': self.documents.sha256(),
    }

  def _sizes(self) -> np.ndarray:
    """Returns the ids of each document in the stream, [num_documents] int64."""
    return self.documents.lengths + 1

  def _ids(self, document: int, start: int, stop: int) -> np.ndarray:
    """Reads ids `start` to `stop` of a document's part of the stream."""
    length = self.documents[document].length
    content = self.documents[document].read(start, min(stop, length))
    if isinstance(content, bytes):
      content = np.frombuffer(content, np.uint8)
    if stop <= length:
      return content
    return np.append(content, np.int32(self.vocab_size + Special.EOS))

  def _may_close_early(self) -> bool:
    """Returns True if a row of full length might hold too many documents."""
    # It would hold the last id of some document, the next max_documents - 1
    # documents whole, and the first id of one more.
    between = self._ends[self.max_documents - 1 : -1]
    between = between - self._ends[: len(between)]
    return bool((between + 2 <= self.sequence_length).any())

  def _row_starts(self) -> np.ndarray:
    """Returns where in the stream each row starts, [len] int64."""
    # Most corpora need no walk over all rows, which is slow.
    if not self._may_close_early():
      return np.arange(0, self.num_ids, self.sequence_length)
    starts = []
    start = 0
    while start < self.num_ids:
      starts.append(start)
      first = int(np.searchsorted(self._ends, start, side='right'))
      last = min(first + self.max_documents, self.num_documents) - 1
      start = min(start + self.sequence_length, int(self._ends[last]))
    return np.array(starts, np.int64)


def empty_row(
  sequence_length: int, pad_id: int = PAD_ID
) -> dict[str, np.ndarray]:
  """Returns a row of padding, with the row number -1; see `Rows`."""
  return {
    'ids': np.full(sequence_length, pad_id, np.int32),
    'document': np.full(sequence_length, -1, np.int32),
    'row': np.array(-1, np.int32),
  }
