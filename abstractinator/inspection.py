"""All there is to see of a text that went through its codes, on the host."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from abstractinator import byte_vocab
from abstractinator.alignment import align
from abstractinator.byte_vocab import NUM_BYTES


@dataclasses.dataclass(frozen=True, eq=False)
class InspectedLevel:
  """Of one level, over all rows of the text; N ids in P segments.

  Attributes:
    lengths_P: [P] int, ids of each segment.
    codes_PQ: [P, Q] int, its codes, which are the ids of the level above.
    is_short_P: [P] bool, cut where it was because its row ran short of slots.
    entropy_bits_N: [N] float32, entropy that cut segments.
    cost_bits_N: [N] float32, what each id costs under the entropy model.
    expander_bits_N: [N] float32, what it costs given the codes that it sees and
      the true ids before it.
  """

  lengths_P: np.ndarray
  codes_PQ: np.ndarray
  is_short_P: np.ndarray
  entropy_bits_N: np.ndarray
  cost_bits_N: np.ndarray
  expander_bits_N: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
  """Of a text; N ids, its bytes and EOS.

  Attributes:
    text: The bytes.
    row_size: Ids of a row; rows do not see each other.
    levels: Bottom first.
    decoded_N: [N] int, the id decoded from codes alone in the place of each;
      -1 where decoding had come to an end. See `align`.
    beyond: For top segments that decode to more ids than they have, by number,
      those beyond.
    forced_N: [N] int, the most likely id given its code and the true ids
      before.
    top_code_bits_N: [codes of the top] float32, what each costs under the top
      LM; None without a discrete one.
    byte_accuracy: As of `Reconstruction`.
  """

  text: bytes
  row_size: int
  levels: tuple[InspectedLevel, ...]
  decoded_N: np.ndarray
  beyond: dict[int, np.ndarray]
  forced_N: np.ndarray
  top_code_bits_N: np.ndarray | None
  byte_accuracy: float

  def ids(self) -> np.ndarray:
    """[N] int32, the bytes and EOS."""
    return byte_vocab.encode(self.text)

  def is_wrong(self) -> np.ndarray:
    """[N] bool, bytes that decoding does not give back.

    And an EOS in whose place it gives a byte.
    """
    ids_N = self.ids()
    is_byte_N = _is_byte(ids_N) | _is_byte(self.decoded_N)
    return is_byte_N & (self.decoded_N != ids_N)


def flatten(
  level: Any, expander_bits_BS: np.ndarray, queries: int
) -> InspectedLevel:
  """Joins rows of a level.

  Args:
    level: A `CodedLevel`, on the host.
    expander_bits_BS: [B, S] float32, see `InspectedLevel`.
    queries: Q.

  Returns:
    The level.
  """
  is_id_BS = level.index_BS >= 0
  rows = [np.bincount(index_S[index_S >= 0]) for index_S in level.index_BS]
  lengths_P = np.concatenate(rows)
  first_P = np.cumsum(lengths_P) - lengths_P
  return InspectedLevel(
    lengths_P=lengths_P,
    codes_PQ=level.codes_BU[level.is_code_BU].reshape(-1, queries),
    is_short_P=level.is_short_BS[is_id_BS][first_P],
    entropy_bits_N=level.entropy_bits_BS[is_id_BS],
    cost_bits_N=level.bits_BS[is_id_BS],
    expander_bits_N=expander_bits_BS[is_id_BS],
  )


def inspection(
  text: bytes,
  levels: Sequence[InspectedLevel],
  *,
  top_BS: np.ndarray,
  num_tops_B: np.ndarray,
  forced_BS: np.ndarray,
  decoded: tuple[np.ndarray, np.ndarray, np.ndarray],
  top_code_bits_N: np.ndarray | None,
) -> Inspection:
  """Sets what was decoded beside a text.

  Args:
    text: The bytes.
    levels: Bottom first.
    top_BS: [B, S] int, the top slot of each id; -1 on padding.
    num_tops_B: [B] int, top segments of each row.
    forced_BS: [B, S] int, see `Inspection`.
    decoded: Ids [B, P, L] of the segments of the first level, how many of them
      hold, [B, P], and the top slots that they come from, [B, P].
    top_code_bits_N: See `Inspection`.

  Returns:
    All of it.
  """
  beside, beyond, right, total, num_tops = [], {}, 0, 0, 0
  for row, (ids_PL, length_P, origin_P, top_S, num) in enumerate(
    zip(*decoded, top_BS, num_tops_B, strict=True)
  ):
    beside_S, beyond_row = align(ids_PL, length_P, origin_P, top_S)
    top_S = top_S[top_S >= 0]
    beside_S = beside_S[: len(top_S)]
    truth_S = byte_vocab.encode(text)[row * top_BS.shape[1] :][: len(top_S)]
    # As `free_running_counts` does, in each top segment.
    num_true_T, num_decoded_T = (
      np.bincount(top_S[_is_byte(x_S)], minlength=num)
      for x_S in (truth_S, beside_S)
    )
    for top, ids in beyond_row.items():
      num_decoded_T[top] += _is_byte(ids).sum()
      beyond[num_tops + top] = ids
    right += np.sum(_is_byte(truth_S) & (beside_S == truth_S))
    total += np.maximum(num_true_T, num_decoded_T).sum()
    num_tops += int(num)
    beside.append(beside_S)
  return Inspection(
    text=text,
    row_size=top_BS.shape[1],
    levels=tuple(levels),
    decoded_N=np.concatenate(beside),
    beyond=beyond,
    forced_N=forced_BS[top_BS >= 0],
    top_code_bits_N=top_code_bits_N,
    byte_accuracy=float(right) / float(total),
  )


def _is_byte(ids_N: np.ndarray) -> np.ndarray:
  return (ids_N >= 0) & (ids_N < NUM_BYTES)
