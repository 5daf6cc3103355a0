"""Bytes as ids: 0..255 are the bytes, BOS, EOS and PAD come after them."""

import numpy as np

from abstractinator.types import Special

NUM_BYTES = 256
BOS_ID = NUM_BYTES + Special.BOS
EOS_ID = NUM_BYTES + Special.EOS
PAD_ID = NUM_BYTES + Special.PAD
VOCAB_SIZE = NUM_BYTES + len(Special)


def encode(document: bytes | bytearray, *, add_eos: bool = True) -> np.ndarray:
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


def decode(ids: np.ndarray) -> bytes:
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
