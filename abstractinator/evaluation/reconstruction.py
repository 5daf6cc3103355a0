"""Comparison of texts with the bytes that their codes decode to, on the host.

Each segment of the top level is compared on its own: the n-th id decoded from
its codes stands beside the n-th id of the segment. A wrong length therefore
spoils its own top segment only.

Beside the letters of `types`, N counts the decoded ids of a row and T texts.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from abstractinator.model.pyramid import DecodedRows
from abstractinator.types import NUM_BYTES


def align(
  decoded_PL: np.ndarray,
  length_P: np.ndarray,
  origin_P: np.ndarray,
  top_S: np.ndarray,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
  """Sets the decoded ids of a row beside its true ids.

  Args:
    decoded_PL: Decoded ids of each segment of the first level, [P, L] int32.
    length_P: Number of ids that each segment has, [P] int32; 0 in empty slots.
    origin_P: Top slot from which each segment was decoded, ascending over the
      slots that are not empty, [P] int32.
    top_S: Top slot of each true id, ascending, [S] int; -1 on padding, which
      comes last.

  Returns:
    beside_S: Decoded id beside each true id, [S] int; -1 if there is none.
    beyond: Decoded ids for which the top segment has no true id, by top slot.
  """
  is_kept_PL = np.arange(decoded_PL.shape[1]) < length_P[:, None]
  ids_N = decoded_PL[is_kept_PL]
  top_N = np.broadcast_to(origin_P[:, None], is_kept_PL.shape)[is_kept_PL]
  number_N = np.arange(len(ids_N)) - np.searchsorted(top_N, top_N)
  real_S = top_S[top_S >= 0]
  begin_N, end_N = (
    np.searchsorted(real_S, top_N, side) for side in ('left', 'right')
  )
  at_N = begin_N + number_N
  is_beside_N = at_N < end_N
  beside_S = np.full(len(top_S), -1)
  beside_S[at_N[is_beside_N]] = ids_N[is_beside_N]
  beyond_N, ids_beyond_N = top_N[~is_beside_N], ids_N[~is_beside_N]
  tops, starts = np.unique(beyond_N, return_index=True)
  parts = np.split(ids_beyond_N, starts[1:])
  return beside_S, dict(zip(tops.tolist(), parts, strict=False))


def count_bytes(
  ids_S: np.ndarray,
  top_S: np.ndarray,
  beside_S: np.ndarray,
  beyond: dict[int, np.ndarray],
) -> tuple[int, int]:
  """Counts the bytes of a row that were decoded right, and all bytes.

  The total is the sum over top segments of the larger number of bytes, the true
  or the decoded ones. So the ratio is 1 only if every byte comes back, and a
  segment decoded too long costs as much as one too short. Special ids are no
  bytes.

  Args:
    ids_S: True ids, [S] int.
    top_S: Top slot of each true id, [S] int; -1 on padding.
    beside_S: Decoded id beside each true id, from `align`.
    beyond: Decoded ids beyond each top segment, from `align`.

  Returns:
    The number of right bytes, and the total.
  """
  is_true_S = (top_S >= 0) & (ids_S < NUM_BYTES)
  is_decoded_S = (beside_S >= 0) & (beside_S < NUM_BYTES)
  num_tops = max(top_S.max(initial=-1), *beyond, -1) + 1
  num_true_P, num_decoded_P = (
    np.bincount(top_S[is_byte_S], minlength=num_tops)
    for is_byte_S in (is_true_S, is_decoded_S)
  )
  for top, ids in beyond.items():
    num_decoded_P[top] += np.sum(ids < NUM_BYTES)
  num_right = np.sum(is_true_S & (beside_S == ids_S))
  return int(num_right), int(np.maximum(num_true_P, num_decoded_P).sum())


def segments_of_rows(
  decoded: DecodedRows,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields `decoded_PL`, `length_P` and `origin_P` of `align` for each row."""
  columns = (decoded.ids_BPL, decoded.length_BP, decoded.rows.origin_BP)
  return zip(*map(np.asarray, columns), strict=True)


def free_running_counts(
  decoded: DecodedRows, ids_BS: ArrayLike, top_BS: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """Counts the bytes of rows that were decoded right from codes alone.

  Args:
    decoded: Decoded rows.
    ids_BS: True ids, [B, S] int.
    top_BS: Top slot of each true id, [B, S] int; -1 on padding.

  Returns:
    right_B: Number of right bytes of each row, [B] int; see `count_bytes`.
    total_B: Number of bytes that count, [B] int.
  """
  counts_B2 = np.array(
    [
      count_bytes(ids_S, top_S, *align(*segments, top_S))
      for ids_S, top_S, segments in zip(
        np.asarray(ids_BS),
        np.asarray(top_BS),
        segments_of_rows(decoded),
        strict=True,
      )
    ]
  )
  right_B, total_B = counts_B2.T
  return right_B, total_B


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """A text as decoded from its codes alone, and how much of it is right.

  Attributes:
    text: The decoded bytes.
    byte_accuracy: Fraction of bytes that free-running decoding got right; see
      `count_bytes`.
    teacher_forced_byte_accuracy: Fraction of bytes predicted right given their
      codes and the true bytes before them.
    num_segments: Number of segments of the first level.
    bytes_per_segment: Bytes of the original text over `num_segments`.
    num_codes: Number of top codes, from which alone the text was decoded.
    exact: Whether `text` is the original.
  """

  text: bytes
  byte_accuracy: float
  teacher_forced_byte_accuracy: float
  num_segments: int
  bytes_per_segment: float
  num_codes: int
  exact: bool


def reconstructions(
  originals: Sequence[bytes],
  texts: Sequence[bytes],
  num_rows_T: Sequence[int],
  *,
  right_B: np.ndarray,
  total_B: np.ndarray,
  forced_B: np.ndarray,
  num_segments_B: np.ndarray,
  num_codes_B: np.ndarray,
) -> list[Reconstruction]:
  """Sums the counts of rows over the rows of each text.

  Args:
    originals: Original texts.
    texts: Decoded texts.
    num_rows_T: Number of rows of each text.
    right_B: Number of bytes that free-running decoding got right, [B] int.
    total_B: Number of bytes that count for it, [B] int.
    forced_B: Number of bytes right under teacher forcing, [B] int.
    num_segments_B: Number of segments of the first level, [B] int.
    num_codes_B: Number of top codes, [B] int.

  Returns:
    The reconstruction of each text.
  """
  results, begin = [], 0
  for original, text, count in zip(originals, texts, num_rows_T, strict=True):
    right, total, forced, segments, codes = (
      int(x[begin : begin + count].sum())
      for x in (right_B, total_B, forced_B, num_segments_B, num_codes_B)
    )
    results.append(
      Reconstruction(
        text=text,
        byte_accuracy=right / total,
        teacher_forced_byte_accuracy=forced / len(original),
        num_segments=segments,
        bytes_per_segment=len(original) / segments,
        num_codes=codes,
        exact=text == original,
      )
    )
    begin += count
  return results
