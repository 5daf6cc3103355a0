"""Bytes as ids: 0..255 are the bytes, BOS, EOS and PAD come after them."""

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


NUM_BYTES = 256
BOS_ID = NUM_BYTES + Special.BOS
EOS_ID = NUM_BYTES + Special.EOS
PAD_ID = NUM_BYTES + Special.PAD
VOCAB_SIZE = NUM_BYTES + len(Special)


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
