"""Sizes of the arrays by which the hierarchy codes a text."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CodingShapes:
  """Sizes of the arrays of the hierarchy's coder.

  A file is decoded with the `row_ids`, `widths`, `lane_windows` and
  `max_table_codes` that it was encoded with; it does not name them.

  Attributes:
    row_ids: Bytes of a row when a text is divided into segments, where every
      stack has a window; else rows are as long as in training.
    batch_ids: Bytes of a batch of such rows.
    widths: Numbers of lanes that a step is compiled for, ascending.
    lane_windows: Ids of a lane, in windows of the stack: those in the first
      window of a lane have less context.
    max_table_codes: Most codes that are coded with the same unigram.
  """

  row_ids: int = 4096
  batch_ids: int = 8192
  widths: tuple[int, ...] = (32, 128, 512, 2048)
  lane_windows: int = 32
  max_table_codes: int = 64

  def width_of(self, num_lanes: int) -> int:
    """Returns the smallest width that has room for a number of lanes."""
    return next(width for width in self.widths if width >= num_lanes)
