"""Codes of texts as rows of equal length."""

import numpy as np

from abstractinator.data.documents import Documents
from abstractinator.data.packing import PackedRows


class PackedCodes(PackedRows):
  """The codes of all texts, one text after the other, cut into rows.

  An id is a code; the last code of a text has `end_offset` added. So the end
  takes no place of its own, as for `CodeSequenceTransformer`.
  """

  _unit = 'num_codes'

  def __init__(
    self, documents: Documents, *, sequence_length: int, end_offset: int
  ):
    """Computes where rows start; no text is read.

    Args:
      documents: The texts, as arrays of their codes, at least one.
      sequence_length: Number of codes in a row.
      end_offset: Number added to the last code of a text.
    """
    self._end_offset = end_offset
    super().__init__(
      [documents],
      sequence_length=sequence_length,
      # No row ends early.
      max_documents=len(documents),
    )

  def _sizes(self) -> np.ndarray:
    return self.documents.lengths

  def _ids(self, document: int, start: int, stop: int) -> np.ndarray:
    codes = np.asarray(self.documents[document].read(start, stop))
    if stop < self.documents[document].length:
      return codes
    return np.append(codes[:-1], codes[-1] + self._end_offset)
