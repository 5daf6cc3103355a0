"""Legend of dimensions, pytrees that cross module borders, bytes as ids.

Array names carry their axes: `x_BSD` has axes B, S, D. The legend holds in
every file of the package.

  B  rows of a batch                S  ids in a row of a level
  P  segment slots of a row         T  queries of a generic attention op
  Q  codes of a segment, one of each learned query
  U  codes of a row: P x Q, those of a segment side by side
  D  model width                    H  attention heads
  A  query/key width per head       E  value width per head
  G  heads of keys or of values: H, or 1 that all heads share
  W  slots of a KV cache, a ring or one for each id
  F  feed-forward hidden width      V  ids a level can predict
  K  codebook entries               C  width of the code space
  N  flattened rows (any product)   R  vectors in the reset reservoir
  L  ids of one segment (max_length)
  M  stages of a quantizer, digits of a code
  J  components of a Gaussian mixture
  Y  width of a top LM, whose D is that of the vectors of codes

Booleans are True for real, visible, kept. Units stand in names (`_bits`,
`_nats`, `_bytes`, `_steps`). Bytes are the ids 0 to 255; BOS, EOS and PAD come
after them.
"""

import enum
from typing import Any

import flax.struct
import jax
import numpy as np

Array = jax.Array
PyTree = Any


class Special(enum.IntEnum):
  """Offsets of the special ids, counted from the number of ordinary ids."""

  BOS = 0
  EOS = 1
  PAD = 2


NUM_BYTES = 256
BOS_ID = NUM_BYTES + Special.BOS
EOS_ID = NUM_BYTES + Special.EOS
PAD_ID = NUM_BYTES + Special.PAD
VOCAB_SIZE = NUM_BYTES + len(Special)


@flax.struct.dataclass
class Batch:
  """Rows of packed documents.

  Attributes:
    ids_BS: Bytes 0..255, EOS at the end of a document, PAD after the last one,
      [B, S] int32. BOS never appears: models feed it at a document's start.
    document_BS: Number of the document of each id, counted from 0 in each row;
      -1 on padding, which only ends a row, [B, S] int32.
    row_B: Number of the row in its data set, [B] int32. Random choices that
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
    index_BS: Segment of each id, counted from 0 in each row; -1 on padding,
      [B, S] int32.
    is_start_BS: True for the first id of a segment, [B, S] bool.
    is_end_BS: True for the last id of a segment, [B, S] bool.
    offset_BS: Position of each id within its segment; 0 on padding, [B, S]
      int32.
    count_B: Number of segments of each row, [B] int32.
    is_capacity_bound_BS: True for ids where slots ran short, so that only
      boundaries after `max_length` ids were left, [B, S] bool.
  """

  index_BS: Array
  is_start_BS: Array
  is_end_BS: Array
  offset_BS: Array
  count_B: Array
  is_capacity_bound_BS: Array


@flax.struct.dataclass
class Mean:
  """Sum and count of a mean, which is divided once all parts are added up.

  Attributes:
    total: Sum of the values, float32 of any shape.
    count: Number of values, float32 of a shape that broadcasts to it.
  """

  total: Array
  count: Array


def bytes_to_ids(
  document: bytes | bytearray, *, add_eos: bool = True
) -> np.ndarray:
  """Turns a document into ids.

  Args:
    document: Any bytes; nothing is interpreted.
    add_eos: Whether to append EOS.

  Returns:
    [len(document) + add_eos] int32.

  Raises:
    TypeError: If it is no bytes: an array would be read as raw memory.
  """
  if not isinstance(document, (bytes, bytearray)):
    raise TypeError(f'document: got {type(document).__name__}, allowed: bytes')
  ids = np.frombuffer(document, np.uint8).astype(np.int32)
  return np.append(ids, np.int32(EOS_ID)) if add_eos else ids


def ids_to_bytes(ids: np.ndarray) -> bytes:
  """Turns ids back into bytes: everything before the first EOS, no specials.

  Args:
    ids: [n] integer ids in 0..VOCAB_SIZE-1.

  Returns:
    The bytes; BOS and PAD are left out.

  Raises:
    ValueError: If an id is outside the vocabulary.
  """
  ids = np.asarray(ids)
  if ids.size and (ids.min() < 0 or ids.max() >= VOCAB_SIZE):
    raise ValueError(
      f'ids must be in 0..{VOCAB_SIZE - 1}, got {ids.min()}..{ids.max()}'
    )
  (ends,) = np.nonzero(ids == EOS_ID)
  if ends.size:
    ids = ids[: ends[0]]
  return ids[ids < NUM_BYTES].astype(np.uint8).tobytes()
