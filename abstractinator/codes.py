"""Texts as rows of ids and as codes, on the host."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from abstractinator import byte_vocab
from abstractinator.byte_vocab import NUM_BYTES, PAD_ID


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
  """A text as codes.

  Attributes:
    codes_N: [N] int32, the Q codes of each segment side by side, in the order
      of the text.
    count_B: [B] int32, how many segments each row of the text has; Q times
      their sum is N. Segments of different rows do not see each other.
    level: Whose codes they are, counted from 0 at the bottom.
  """

  codes_N: np.ndarray
  count_B: np.ndarray
  level: int = 0


def rows(data: bytes, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a text into rows, each a document; EOS comes after the last byte.

  Args:
    data: Any bytes, at least one.
    sequence_length: S.

  Returns:
    Ids and documents, [B, S] int32 each; see `Batch`.

  Raises:
    ValueError: If there are no bytes.
  """
  if not len(data):
    raise ValueError('data: got no bytes, allowed: at least 1')
  ids = byte_vocab.encode(data)
  missing = -len(ids) % sequence_length
  ids_BS = np.pad(ids, (0, missing), constant_values=PAD_ID)
  ids_BS = ids_BS.reshape(-1, sequence_length)
  return ids_BS, np.where(ids_BS == PAD_ID, -1, 0).astype(np.int32)


def text(
  ids_BPL: np.ndarray, length_BP: np.ndarray, is_valid_BP: np.ndarray
) -> bytes:
  """Joins decoded segments.

  Args:
    ids_BPL: [B, P, L] int32 ids.
    length_BP: [B, P] int32, how many of them hold.
    is_valid_BP: [B, P] bool, slots with a segment.

  Returns:
    The bytes; specials are left out.
  """
  is_kept_BPL = np.arange(ids_BPL.shape[2]) < length_BP[..., None]
  is_kept_BPL &= is_valid_BP[..., None] & (ids_BPL < NUM_BYTES)
  return ids_BPL[is_kept_BPL].astype(np.uint8).tobytes()


def from_slots(
  codes_BU: np.ndarray, count_B: np.ndarray, num_slots: int, level: int
) -> Codes:
  """Packs the codes of rows; slots from the count of a row on are empty."""
  codes_BPQ = codes_BU.reshape(len(codes_BU), num_slots, -1)
  codes_N = codes_BPQ[_is_valid(count_B, num_slots)].reshape(-1)
  return Codes(codes_N, count_B, level)


def split(codes: Codes, num_rows_T: Sequence[int], queries: int) -> list[Codes]:
  """Codes of so many rows each, with Q codes a segment."""
  parts, row, at = [], 0, 0
  for num_rows in num_rows_T:
    count_B = codes.count_B[row : row + num_rows]
    size = queries * int(count_B.sum())
    parts.append(Codes(codes.codes_N[at : at + size], count_B, codes.level))
    row, at = row + num_rows, at + size
  return parts


def join(parts: Sequence[Codes]) -> Codes:
  """The rows of all; undoes `split`.

  Raises:
    ValueError: If they are of different levels.
  """
  levels = sorted({part.level for part in parts})
  if len(levels) > 1:
    raise ValueError(f'level: got codes of {levels}, allowed: of one level')
  return Codes(
    np.concatenate([part.codes_N for part in parts]),
    np.concatenate([part.count_B for part in parts]),
    levels[0],
  )


def to_slots(
  codes: Codes, num_codes: int, num_slots: int, num_queries: int
) -> tuple[np.ndarray, np.ndarray]:
  """Undoes `from_slots`.

  Args:
    codes: Of a text.
    num_codes: K.
    num_slots: P.
    num_queries: Q.

  Returns:
    codes_BU [B, U] int32, 0 in empty slots, and is_valid_BP [B, P] bool.

  Raises:
    ValueError: If a code is not in 0..K-1 or the counts do not fit.
  """
  codes_N, count_B = codes.codes_N, codes.count_B
  is_wrong_N = (codes_N < 0) | (codes_N >= num_codes)
  if is_wrong_N.any():
    raise ValueError(
      f'codes: got {codes_N[is_wrong_N][0]}, allowed: 0 to {num_codes - 1}'
    )
  is_wrong_B = (count_B < 1) | (count_B > num_slots)
  if is_wrong_B.any():
    raise ValueError(
      f'segments of a row: got {count_B[is_wrong_B][0]}, allowed: 1 to'
      f' {num_slots}'
    )
  wanted = num_queries * count_B.sum()
  if wanted != len(codes_N):
    raise ValueError(
      f'codes: got {len(codes_N)} of them, allowed: {wanted}, {num_queries} for'
      ' each segment of the rows'
    )
  is_valid_BP = _is_valid(count_B, num_slots)
  codes_BPQ = np.zeros((*is_valid_BP.shape, num_queries), np.int32)
  codes_BPQ[is_valid_BP] = codes_N.reshape(-1, num_queries)
  return codes_BPQ.reshape(len(codes_BPQ), -1), is_valid_BP


def _is_valid(count_B: np.ndarray, num_slots: int) -> np.ndarray:
  return np.arange(num_slots) < count_B[:, None]
