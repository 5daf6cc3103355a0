"""Codes of texts as rows of equal length."""

from typing import Any

import numpy as np

from abstractinator.data.documents import Documents
from abstractinator.data.packing import PackedRows


class PackedCodes(PackedRows):
  """The codes of all texts, one text after the other, cut into rows.

  An id is a code; the last code of a text has `end_offset` added. So the end
  takes no place of its own, as for `CodeSequenceTransformer`.
  """

  def __init__(
    self,
    documents: Documents,
    *,
    sequence_length: int,
    end_offset: int,
    bytes_per_code: float,
  ):
    """Computes where rows start; no text is read.

    Args:
      documents: The texts, as arrays of their codes, at least one.
      sequence_length: Number of codes in a row.
      end_offset: Number added to the last code of a text.
      bytes_per_code: Average number of bytes that a code stands for.
    """
    self._end_offset = end_offset
    super().__init__(
      documents,
      sequence_length=sequence_length,
      # No row ends early.
      max_documents=documents.num_documents,
    )
    self.num_bytes = round(self._num_ids * bytes_per_code)

  def identity(self) -> dict[str, Any]:
    known = super().identity() | {'num_codes': self._num_ids}
    # It follows from `num_codes` and is approximate.
    del known['num_bytes']
    return known

  def _sizes(self) -> np.ndarray:
    return self.documents.lengths

  def _ids(self, document: int, start: int, stop: int) -> np.ndarray:
    codes = np.asarray(self.documents.read(document, start, stop))
    if stop < self.documents.lengths[document]:
      return codes
    return np.append(codes[:-1], codes[-1] + self._end_offset)
