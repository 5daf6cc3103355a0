"""Dimension legend and the pytrees that cross module borders.

Array names carry their axes: `x_BSD` has axes B, S, D. The legend holds in
every file of the package.

  B  rows of a batch                S  ids in a row (a level's own sequence)
  P  segment slots of a row         T  queries of a generic attention op
  Q  codes of a segment, one of each learned query
  U  codes of a row: P x Q, those of a segment side by side
  D  model width                    H  attention heads
  A  query/key width per head       E  value width per head
  G  heads of keys or of values: H, or 1 that all heads share
  W  slots of a cache of keys       (a ring, or as many as ids can come)
  F  feed-forward hidden width      V  ids a level can predict
  K  codebook entries               C  width of the code space
  N  flattened rows (any product)   R  vectors in the reset reservoir
  L  ids of one segment (max_length)
  M  stages of a quantizer, digits of a code
  J  components of a Gaussian mixture
  Y  width of a top LM, whose D is that of the vectors of codes

Booleans are True for real, visible, kept. Units stand in names (`_bits`,
`_nats`, `_bytes`, `_steps`).
"""

import enum
from typing import Any

import flax.struct
import jax

Array = jax.Array
PyTree = Any


class Special(enum.IntEnum):
  """Offsets of the special ids, counted from the number of ordinary ids."""

  BOS = 0
  EOS = 1
  PAD = 2


@flax.struct.dataclass
class Batch:
  """Rows of packed documents.

  Attributes:
    ids_BS: [B, S] int32. Bytes 0..255, EOS at the end of a document, PAD where
      there is nothing. BOS never appears: models feed it at a document's start.
    document_BS: [B, S] int32, which document of its row an id belongs to,
      counted from 0 in each row; -1 on padding, which only ends a row.
    row_B: [B] int32, identity of the row in its data set. Random choices that
      concern a row (codebook resets) are keyed by it, so that they do not
      depend on how rows are spread over microbatches or devices.
  """

  ids_BS: Array
  document_BS: Array
  row_B: Array


@flax.struct.dataclass
class Segments:
  """A division of each row into consecutive segments.

  Attributes:
    index_BS: [B, S] int32, segment of each id, counted from 0 in each row; -1
      on padding.
    is_start_BS: [B, S] bool, the id is the first of its segment.
    is_end_BS: [B, S] bool, the id is the last of its segment.
    offset_BS: [B, S] int32, position of the id within its segment; 0 on
      padding.
    count_B: [B] int32, segments in the row.
    is_capacity_bound_BS: [B, S] bool, the id lies where only `max_length`
      boundaries were left because slots ran short.
  """

  index_BS: Array
  is_start_BS: Array
  is_end_BS: Array
  offset_BS: Array
  count_B: Array
  is_capacity_bound_BS: Array


@flax.struct.dataclass
class Mean:
  """A mean in the making: sums and counts travel, the division is done last.

  Attributes:
    total: Sum of the values, float32, any shape.
    count: How many were summed, float32, of a shape that broadcasts to it.
  """

  total: Array
  count: Array
