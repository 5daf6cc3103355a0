"""Segments, codes and costs of a text, and the bytes its codes decode to."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from abstractinator import types
from abstractinator.codes.codes import segment_lengths
from abstractinator.evaluation.coded_rows import CodedLevel
from abstractinator.evaluation.reconstruction import (
  align,
  count_bytes,
  segments_of_rows,
)
from abstractinator.model.pyramid import DecodedRows
from abstractinator.types import NUM_BYTES


@dataclasses.dataclass(frozen=True, eq=False)
class InspectedLevel:
  """Segments and codes of one level, over all rows of a text.

  The level has N ids in P segments. Costs are -log2 p, in bits.

  Attributes:
    lengths_P: Number of ids of each segment, [P] int.
    codes_PQ: Codes of each segment, which are the ids of the level above,
      [P, Q] int.
    is_short_P: Segments cut where they are because their row ran short of
      slots, [P] bool.
    entropy_bits_N: Entropy of the prediction of each id, by which segments are
      cut, [N] float32.
    cost_bits_N: Cost of each id under the entropy model, [N] float32.
    expander_bits_N: Cost of each id under the expander, given the codes that it
      sees and the true ids before it, [N] float32.
  """

  lengths_P: np.ndarray
  codes_PQ: np.ndarray
  is_short_P: np.ndarray
  entropy_bits_N: np.ndarray
  cost_bits_N: np.ndarray
  expander_bits_N: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
  """A text, its levels, and the decoded bytes; N ids are its bytes and EOS.

  Attributes:
    text: The bytes.
    row_size: Ids of a row; rows do not see each other.
    levels: The levels, bottom first.
    decoded_N: Id decoded from codes alone in the place of each id, [N] int; -1
      if decoding had ended before. See `align`.
    beyond: Ids decoded past the end of a top segment, by the number of the
      segment, for those that decode to more ids than they have.
    forced_N: Most likely id given its code and the true ids before it, [N] int.
    top_code_bits_N: Cost of each top code under the top LM, float32; None
      without a discrete top LM.
    byte_accuracy: See `Reconstruction`.
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
    """Returns the bytes and EOS, [N] int32."""
    return types.bytes_to_ids(self.text)

  def is_wrong(self) -> np.ndarray:
    """Returns which ids decoding gets wrong, [N] bool.

    Those are bytes decoded to anything else, and EOS decoded to a byte.
    """
    ids_N = self.ids()
    is_decoded_N = (self.decoded_N >= 0) & (self.decoded_N < NUM_BYTES)
    is_byte_N = (ids_N < NUM_BYTES) | is_decoded_N
    return is_byte_N & (self.decoded_N != ids_N)


def flatten(
  level: CodedLevel, expander_bits_BS: np.ndarray, queries: int
) -> InspectedLevel:
  """Returns a level whose rows are joined.

  Args:
    level: Rows of the level, on the host.
    expander_bits_BS: `InspectedLevel.expander_bits_N` by row, [B, S] float32.
    queries: Codes of a segment, Q.
  """
  index_BS = np.asarray(level.index_BS)
  is_id_BS = index_BS >= 0
  lengths_P = segment_lengths(index_BS)
  first_P = np.cumsum(lengths_P) - lengths_P
  codes_N = np.asarray(level.codes_BU)[np.asarray(level.is_code_BU)]
  return InspectedLevel(
    lengths_P=lengths_P,
    codes_PQ=codes_N.reshape(-1, queries),
    is_short_P=np.asarray(level.is_short_BS)[is_id_BS][first_P],
    entropy_bits_N=np.asarray(level.entropy_bits_BS)[is_id_BS],
    cost_bits_N=np.asarray(level.bits_BS)[is_id_BS],
    expander_bits_N=expander_bits_BS[is_id_BS],
  )


def inspection(
  text: bytes,
  levels: Sequence[InspectedLevel],
  *,
  ids_BS: np.ndarray,
  top_BS: np.ndarray,
  num_tops_B: np.ndarray,
  forced_BS: np.ndarray,
  decoded: DecodedRows,
  top_code_bits_N: np.ndarray | None,
) -> Inspection:
  """Returns an inspection: the decoded bytes set beside a text.

  Args:
    text: The bytes.
    levels: The levels, bottom first.
    ids_BS: Ids of all rows of the text, [B, S] int.
    top_BS: Top slot of each id, -1 on padding, [B, S] int.
    num_tops_B: Number of top segments of each row, [B] int.
    forced_BS: `Inspection.forced_N` by row, [B, S] int.
    decoded: Ids that the top codes decode to.
    top_code_bits_N: See `Inspection`.
  """
  first_B = np.cumsum(num_tops_B) - num_tops_B
  beside: list[np.ndarray] = []
  beyond: dict[int, np.ndarray] = {}
  num_right = num_total = 0
  for first, ids_S, top_S, segments in zip(
    first_B, ids_BS, top_BS, segments_of_rows(decoded), strict=True
  ):
    beside_S, beyond_row = align(*segments, top_S)
    beside.append(beside_S[top_S >= 0])
    beyond |= {int(first) + top: ids for top, ids in beyond_row.items()}
    right, total = count_bytes(ids_S, top_S, beside_S, beyond_row)
    num_right, num_total = num_right + right, num_total + total
  return Inspection(
    text=text,
    row_size=top_BS.shape[1],
    levels=tuple(levels),
    decoded_N=np.concatenate(beside),
    beyond=beyond,
    forced_N=forced_BS[top_BS >= 0],
    top_code_bits_N=top_code_bits_N,
    byte_accuracy=num_right / num_total,
  )
