"""Codes of a text, on the host: to and from rows of ids and slots of segments.

Beside the letters of `types`, `num_rows` lists the rows of several texts.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from abstractinator.types import NUM_BYTES, PAD_ID, bytes_to_ids


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
  """A text as codes of one level.

  Attributes:
    codes_N: Codes in the order of the text, the Q codes of each segment side by
      side, [N] int32.
    count_B: Number of segments in each row of the text, [B] int32; Q times
      their sum is N. Segments of different rows do not see each other.
    level: Number of the level, counted from 0 at the bottom.
  """

  codes_N: np.ndarray
  count_B: np.ndarray
  level: int = 0


def rows(
  data: bytes, sequence_length: int, first: int = 0, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a text into rows, each a document; EOS comes after the last byte.

  Args:
    data: Any bytes, at least one.
    sequence_length: Number of ids in a row, S.
    first: Number of the first row to return.
    count: The most rows to return; all by default.

  Returns:
    Ids and documents, [B, S] int32 each; see `types.Batch`.
  """
  start = first * sequence_length
  stop = None if count is None else start + count * sequence_length
  part = data[start:stop]
  is_last = stop is None or stop > len(data)
  ids = bytes_to_ids(part, add_eos=is_last)
  missing = -len(ids) % sequence_length
  ids_BS = np.pad(ids, (0, missing), constant_values=PAD_ID)
  ids_BS = ids_BS.reshape(-1, sequence_length)
  return ids_BS, np.where(ids_BS == PAD_ID, -1, 0).astype(np.int32)


def num_rows(data: bytes, sequence_length: int) -> int:
  """Returns the number of rows of a text, EOS included.

  Raises:
    ValueError: If there are no bytes.
  """
  if not data:
    raise ValueError('data: got no bytes, allowed: at least 1')
  return len(data) // sequence_length + 1


def segment_lengths(index_BS: np.ndarray) -> np.ndarray:
  """Returns the number of ids of each segment of all rows in order, [P] int.

  Args:
    index_BS: Segment of each id, counted from 0 in each row, -1 on padding,
      [B, S] int32.
  """
  return np.concatenate(
    [np.bincount(index_S[index_S >= 0]) for index_S in index_BS]
  )


def text(
  ids_BPL: np.ndarray, length_BP: np.ndarray, is_valid_BP: np.ndarray
) -> bytes:
  """Joins decoded segments to their bytes; special ids are left out.

  Args:
    ids_BPL: Decoded ids, [B, P, L] int32.
    length_BP: Number of ids that belong to each segment, [B, P] int32.
    is_valid_BP: True for slots that hold a segment, [B, P] bool.
  """
  is_kept_BPL = np.arange(ids_BPL.shape[2]) < length_BP[..., None]
  is_kept_BPL &= is_valid_BP[..., None] & (ids_BPL < NUM_BYTES)
  return ids_BPL[is_kept_BPL].astype(np.uint8).tobytes()


def split(codes: Codes, num_rows: Sequence[int], queries: int) -> list[Codes]:
  """Splits codes into those of each text.

  Args:
    codes: Codes of all texts, one after the other.
    num_rows: Number of rows of each text.
    queries: Number of codes of a segment, Q.
  """
  counts = np.split(codes.count_B, np.cumsum(num_rows, dtype=int))[:-1]
  sizes = [queries * int(count_B.sum()) for count_B in counts]
  parts = np.split(codes.codes_N, np.cumsum(sizes, dtype=int))[:-1]
  return [Codes(*x, codes.level) for x in zip(parts, counts, strict=True)]


def join(parts: Sequence[Codes]) -> Codes:
  """Returns the codes of all rows of several texts; the inverse of `split`.

  Raises:
    ValueError: If the texts are of different levels.
  """
  levels = sorted({part.level for part in parts})
  if len(levels) > 1:
    raise ValueError(f'level: got codes of {levels}, allowed: of one level')
  return Codes(
    np.concatenate([part.codes_N for part in parts]),
    np.concatenate([part.count_B for part in parts]),
    levels[0],
  )


def from_slots(
  codes_BU: np.ndarray, count_B: np.ndarray, num_slots: int, level: int
) -> Codes:
  """Packs the codes of rows, leaving out empty slots.

  Args:
    codes_BU: Codes of P slots in each row, [B, U] int32.
    count_B: Number of segments in each row, [B] int32; they fill its first
      slots.
    num_slots: Number of slots in a row, P.
    level: Number of the level.
  """
  codes_BPQ = codes_BU.reshape(len(codes_BU), num_slots, -1)
  codes_N = codes_BPQ[_is_valid(count_B, num_slots)].reshape(-1)
  return Codes(codes_N, count_B, level)


def to_slots(
  codes: Codes, num_codes: int, num_slots: int, num_queries: int
) -> tuple[np.ndarray, np.ndarray]:
  """Puts the codes of a text into slots; the inverse of `from_slots`.

  Args:
    codes: Codes of a text.
    num_codes: Number of codebook entries, K.
    num_slots: Number of slots in a row, P.
    num_queries: Number of codes of a segment, Q.

  Returns:
    codes_BU: The codes, 0 in empty slots, [B, U] int32.
    is_valid_BP: True for slots that hold a segment, [B, P] bool.

  Raises:
    ValueError: If a code is not in 0..K-1 or the counts do not fit.
  """
  codes_N, count_B = codes.codes_N, codes.count_B
  for name, values, low, high in (
    ('codes', codes_N, 0, num_codes - 1),
    ('segments of a row', count_B, 1, num_slots),
  ):
    wrong = values[(values < low) | (values > high)]
    if wrong.size:
      raise ValueError(f'{name}: got {wrong[0]}, allowed: {low} to {high}')
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
