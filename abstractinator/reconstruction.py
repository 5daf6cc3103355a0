"""What comes back of a text."""

import dataclasses


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
