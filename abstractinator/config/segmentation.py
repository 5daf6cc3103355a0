"""Where the segments of a level begin."""

import dataclasses
import math
from typing import Literal

from abstractinator.config.section import Section, require, require_positive

Rule = Literal[
  'entropy_delta', 'entropy_threshold', 'equal_information', 'stride', 'space'
]


MAX_THRESHOLD = 1e5


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(Section):
  """Where segments begin."""

  rule: Rule
  threshold: float
  target_length: float | None
  calibration_step: float
  min_length: int
  max_length: int
  capacity_length: float

  def __post_init__(self):
    require_positive(self, 'min_length', 'max_length', 'calibration_step')
    # Rules count in whole numbers of 2^-12 bits or ids, of 32 bits.
    within = abs(self.threshold) <= MAX_THRESHOLD
    limits = f'-{MAX_THRESHOLD:g} to {MAX_THRESHOLD:g}'
    require(within, 'threshold', self.threshold, limits)
    require(
      self.calibration_step <= 1,
      'calibration_step',
      self.calibration_step,
      'at most 1',
    )
    if self.rule == 'equal_information':
      require_positive(self, 'threshold')
    if self.rule == 'stride':
      allowed = '>= 1 with rule stride'
      require(self.threshold >= 1, 'threshold', self.threshold, allowed)
    require(
      self.min_length <= self.max_length,
      'min_length',
      self.min_length,
      f'at most max_length ({self.max_length})',
    )
    require(
      1 <= self.capacity_length <= self.max_length,
      'capacity_length',
      self.capacity_length,
      f'1 to max_length ({self.max_length})',
    )
    if self.target_length is not None:
      require(
        max(self.capacity_length, self.min_length)
        <= self.target_length
        <= self.max_length,
        'target_length',
        self.target_length,
        f'at least capacity_length ({self.capacity_length}) and min_length'
        f' ({self.min_length}), at most max_length ({self.max_length})',
      )

  def num_slots(self, sequence_length: int) -> int:
    """Segment slots of a row of `sequence_length` ids."""
    return math.ceil(sequence_length / self.capacity_length)
