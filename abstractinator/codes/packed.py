"""Codes of texts as rows of equal length."""

from typing import Any

import numpy as np

from abstractinator.data.documents import Documents
from abstractinator.data.packing import PackedRows

_BYTES_OF_A_CODE = np.dtype(np.int32).itemsize


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
      documents: The texts; the bytes of a document are its codes, int32.
      sequence_length: Number of codes in a row.
      end_offset: Number added to the last code of a text.
      bytes_per_code: Average number of bytes that a code stands for.
    """
    self._end_offset = end_offset
    super().__init__(
      documents,
      sequence_length=sequence_length,
      # No row ends early.
      max_documents=max(documents.num_documents, 1),
    )
    self.num_bytes = round(self._num_ids * bytes_per_code)

  def identity(self) -> dict[str, Any]:
    known = super().identity() | {'num_codes': self._num_ids}
    # It follows from `num_codes` and is approximate.
    del known['num_bytes']
    return known

  def _sizes(self) -> np.ndarray:
    return self.documents.lengths // _BYTES_OF_A_CODE

  def _ids(self, document: int, start: int, stop: int) -> np.ndarray:
    size = int(self.documents.lengths[document])
    start, stop = start * _BYTES_OF_A_CODE, stop * _BYTES_OF_A_CODE
    content = self.documents.read(document, start, stop)
    codes = np.frombuffer(content, np.int32)
    if stop < size:
      return codes
    return np.append(codes[:-1], codes[-1] + self._end_offset)
