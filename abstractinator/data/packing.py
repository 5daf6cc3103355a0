"""Documents as rows of equal length, any of which can be read at any time."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from abstractinator.data.documents import Documents
from abstractinator.types import NUM_BYTES, PAD_ID, Special


class PackedRows:
  """Rows of one corpus or of several, numbered from 0, one after the other.

  The stream of a corpus is the ids of each document and EOS, one document after
  the other, cut into rows. A document may be spread over rows; only its true
  end has EOS. Every id of the stream is in exactly one row, and padding ends a
  row.

  Attributes:
    corpora: Documents of each corpus.
    documents: Documents of all corpora.
    weights: Share of each corpus in the rows that are trained on; they add up
      to 1.
    row_ends: Number of rows in the corpora up to each one and including it.
    sequence_length: Number of ids in a row, S.
    vocab_size: Number of ids; EOS and PAD come after them.
    pad_id: Id on padding.
    num_ids: Number of ids in all rows, without padding.
  """

  def __init__(
    self,
    corpora: Sequence[Documents],
    *,
    sequence_length: int,
    max_documents: int,
    vocab_size: int = NUM_BYTES,
    has_eos: bool = True,
    weights: Sequence[float] = (1.0,),
  ):
    """Computes where rows start; no document is read.

    Args:
      corpora: Documents of each corpus to pack, at least one.
      sequence_length: Number of ids in a row, S, at least 1.
      max_documents: Maximum number of documents in a row, at least 1: with 1,
        each begins a row of its own, and padding ends its last row. A row that
        would hold more ends before the first that is too many.
      vocab_size: Number of ids, 256 for bytes.
      has_eos: Whether EOS follows each document. Codes mark the end of a text
        otherwise.
      weights: Weight of each corpus, above 0.

    Raises:
      ValueError: If a corpus has no documents.
    """
    if not all(corpora):
      raise ValueError('data: has no documents, allowed: at least 1')
    self.corpora = tuple(corpora)
    self.documents = Documents(itertools.chain(*corpora))
    self.weights = tuple(weight / sum(weights) for weight in weights)
    self.sequence_length = sequence_length
    self.vocab_size = vocab_size
    self.pad_id = vocab_size + Special.PAD
    self._has_eos = has_eos
    # Position in the stream of all corpora after the last id of each document.
    self._ends = np.cumsum(self.documents.lengths + has_eos)
    self.num_ids = int(self._ends[-1])
    last_documents = np.cumsum([len(corpus) for corpus in corpora])
    starts, begin = [], 0
    for ends in np.split(self._ends, last_documents[:-1]):
      of_corpus = _row_starts(ends - begin, sequence_length, max_documents)
      starts.append(begin + of_corpus)
      begin = ends[-1]
    self.row_ends = np.cumsum([len(x) for x in starts]).tolist()
    # Positions in the stream where rows start, and its end.
    self._starts = np.concatenate([*starts, [self.num_ids]])

  def __len__(self) -> int:
    return self.row_ends[-1]

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
    """Returns the JSON by which a checkpoint recognises the rows."""
    unit = 'num_bytes' if self._has_eos else 'num_codes'
    parts = [
      {
        'num_documents': len(corpus),
        unit: int(corpus.lengths.sum()),
        'num_rows': stop - start,
        'sha256': corpus.sha256(),
      }
      for corpus, (start, stop) in zip(
        self.corpora, itertools.pairwise([0, *self.row_ends]), strict=True
      )
    ]
    if len(parts) == 1:
      return parts[0]
    return {'weights': list(self.weights), 'parts': parts}

  def _ids(self, document: int, start: int, stop: int) -> np.ndarray:
    """Reads ids `start` to `stop` of a document's part of the stream."""
    length = self.documents[document].length
    content = self.documents[document].read(start, min(stop, length))
    if isinstance(content, bytes):
      content = np.frombuffer(content, np.uint8)
    if stop <= length:
      return content
    return np.append(content, np.int32(self.vocab_size + Special.EOS))


def _row_starts(
  ends: np.ndarray, sequence_length: int, max_documents: int
) -> np.ndarray:
  """Returns where in the stream of a corpus each row starts, int64.

  `ends` are the positions in the stream after the last id of each document.
  """
  # A row of full length holds too many documents if it holds the last id of
  # some document, the next max_documents - 1 documents whole, and the first id
  # of one more. Most corpora have no such row and need no walk over all rows,
  # which is slow.
  between = ends[max_documents - 1 : -1]
  between = between - ends[: len(between)]
  if (between + 2 > sequence_length).all():
    return np.arange(0, ends[-1], sequence_length)
  starts, start = [], 0
  while start < ends[-1]:
    starts.append(start)
    first = int(np.searchsorted(ends, start, side='right'))
    last = min(first + max_documents, len(ends)) - 1
    start = min(start + sequence_length, int(ends[last]))
  return np.array(starts, np.int64)


def empty_row(
  sequence_length: int, pad_id: int = PAD_ID
) -> dict[str, np.ndarray]:
  """Returns a row of padding, with the row number -1; see `PackedRows`."""
  return {
    'ids': np.full(sequence_length, pad_id, np.int32),
    'document': np.full(sequence_length, -1, np.int32),
    'row': np.array(-1, np.int32),
  }
