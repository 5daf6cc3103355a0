"""Codes of texts as rows of equal length."""

import operator
from typing import Any

import numpy as np

from abstractinator.data.documents import Documents
from abstractinator.data.packing import empty_row


class PackedCodes:
  """The codes of all texts, one text after the other, cut into rows.

  An id is a code; the last code of a text has `end_offset` added. So the end
  takes no place of its own, as for `CodeSequenceTransformer`.

  Attributes:
    documents: The texts: the bytes of a document are its codes, int32.
    sequence_length: Codes of a row.
    num_bytes: Of the texts that the codes stand for, about.
  """

  def __init__(
    self,
    documents: Documents,
    *,
    sequence_length: int,
    end_offset: int,
    bytes_per_code: float,
  ):
    """Reads all of them."""
    self.documents = documents
    self.sequence_length = sequence_length
    codes = [
      np.frombuffer(documents.read(i, 0, int(length)), np.int32)
      for i, length in enumerate(documents.lengths)
    ]
    self._ends = np.cumsum([len(x) for x in codes])
    self._ids_N = np.concatenate([np.zeros(0, np.int32), *codes])
    self._ids_N[self._ends - 1] += end_offset
    self.num_bytes = round(len(self._ids_N) * bytes_per_code)

  @property
  def num_documents(self) -> int:
    """How many texts there are."""
    return self.documents.num_documents

  def __len__(self) -> int:
    return -(-len(self._ids_N) // self.sequence_length)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Reads a row, as `PackedRows` does.

    Args:
      index: Which row, 0 to len - 1.

    Returns:
      `ids`, `document` and `row`; what ends the last row is of document -1.
    """
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    start = index * self.sequence_length
    ids_N = self._ids_N[start : start + self.sequence_length]
    text_N = np.searchsorted(
      self._ends, np.arange(start, start + len(ids_N)), side='right'
    )
    row = self.empty_row()
    row['ids'][: len(ids_N)] = ids_N
    row['document'][: len(ids_N)] = text_N - text_N[0]
    return row | {'row': np.int32(index)}

  def empty_row(self) -> dict[str, np.ndarray]:
    """Returns a row of no code, with the row number -1 of no row."""
    return empty_row(self.sequence_length)

  def fingerprint(self) -> dict[str, Any]:
    """Returns what a checkpoint notes of the rows, ready for JSON."""
    return {
      'num_documents': self.num_documents,
      'num_codes': len(self._ids_N),
      'num_rows': len(self),
      'sha256': self.documents.fingerprint(),
    }
