"""What comes back of a text."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """What came back of a text from its codes alone.

  Attributes:
    text: The decoded bytes.
    byte_accuracy: Bytes that free-running decoding got right, compared within
      each segment; see `evaluation.reconstruction`.
    teacher_forced_byte_accuracy: Bytes predicted right from their code and the
      true bytes before them.
    num_segments: How many segments there were.
    bytes_per_segment: Bytes of the text over `num_segments`.
    exact: Whether `text` is the original.
  """

  text: bytes
  byte_accuracy: float
  teacher_forced_byte_accuracy: float
  num_segments: int
  bytes_per_segment: float
  exact: bool


def reconstructions(
  originals: Sequence[bytes],
  texts: Sequence[bytes],
  num_rows_T: Sequence[int],
  *,
  right_B: np.ndarray,
  total_B: np.ndarray,
  forced_B: np.ndarray,
  num_segments_B: np.ndarray,
) -> list[Reconstruction]:
  """Sums what rows came to over the rows of each text.

  Args:
    originals: What was encoded.
    texts: What came back.
    num_rows_T: Rows of each.
    right_B: [B] bytes that free-running decoding got right.
    total_B: [B] bytes that count.
    forced_B: [B] bytes right given the true ones before them.
    num_segments_B: [B] segments of the first level.

  Returns:
    Of each text.
  """
  results, begin = [], 0
  for original, text, count in zip(originals, texts, num_rows_T, strict=True):
    right, total, forced, segments = (
      x[begin : begin + count].sum()
      for x in (right_B, total_B, forced_B, num_segments_B)
    )
    results.append(
      Reconstruction(
        text=text,
        byte_accuracy=float(right) / float(total),
        teacher_forced_byte_accuracy=float(forced) / len(original),
        num_segments=int(segments),
        bytes_per_segment=len(original) / int(segments),
        exact=text == original,
      )
    )
    begin += count
  return results
