"""Settings of the division of rows into segments."""

import dataclasses
import math
from typing import Annotated, Literal

from abstractinator.config.section import (
  PositiveFloat,
  PositiveInt,
  Section,
  positive,
)

SegmentationRule = Literal[
  'entropy_delta', 'entropy_threshold', 'equal_information', 'stride', 'space'
]
# Rules compare whole multiples of 2^-12 bits or ids in int32, which overflow
# near 5e5.
MAX_THRESHOLD = 1e5


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(Section):
  """The rule that opens segments, their lengths, and the slots of a row."""

  rule: SegmentationRule
  threshold: float
  target_length: float | None
  calibration_step: PositiveFloat
  min_length: PositiveInt
  max_length: Annotated[int, positive(4096)]
  capacity_length: float

  def check(self) -> None:
    self.require(
      abs(self.threshold) <= MAX_THRESHOLD,
      'threshold',
      f'-{MAX_THRESHOLD:g} to {MAX_THRESHOLD:g}',
    )
    self.require(self.calibration_step <= 1, 'calibration_step', 'at most 1')
    if self.rule == 'equal_information':
      self.require(self.threshold > 0, 'threshold', 'a positive number')
    if self.rule == 'stride':
      self.require(self.threshold >= 1, 'threshold', '>= 1 with rule stride')
    self.require(
      self.min_length <= self.max_length,
      'min_length',
      f'at most max_length ({self.max_length})',
    )
    self.require(
      1 <= self.capacity_length <= self.max_length,
      'capacity_length',
      f'1 to max_length ({self.max_length})',
    )
    shortest = max(self.capacity_length, self.min_length)
    self.require(
      self.target_length is None
      or shortest <= self.target_length <= self.max_length,
      'target_length',
      f'at least capacity_length ({self.capacity_length}) and min_length'
      f' ({self.min_length}), at most max_length ({self.max_length})',
    )

  def num_slots(self, sequence_length: int) -> int:
    """Returns P, the segment slots of a row of `sequence_length` ids."""
    return math.ceil(sequence_length / self.capacity_length)
