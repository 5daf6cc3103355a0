"""How much of a text comes back from its codes alone."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.model.pyramid import (
  DecodedRows,
  PyramidOutput,
)
from abstractinator.ops import segmentation
from abstractinator.types import NUM_BYTES, Array, Batch, Mean, PyTree


def align(
  decoded_PL: np.ndarray,
  length_P: np.ndarray,
  origin_P: np.ndarray,
  top_S: np.ndarray,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
  """Sets what was decoded beside the ids of a row, segment by segment.

  Segments of the top level are compared each on its own, as
  `free_running_counts` does: what is decoded n-th stands beside the n-th id.

  Args:
    decoded_PL: [P, L] int32, ids of each segment of the first level.
    length_P: [P] int32, how many of them hold; 0 in empty slots.
    origin_P: [P] int32, the top slot that each comes from, ascending.
    top_S: [S] int, the top slot of each id, ascending; -1 on padding, which
      comes last.

  Returns:
    [S] int, the id decoded beside each; -1 of none. And for each top slot that
    decodes to more ids than it has, those beyond.
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
  return beside_S, {
    int(top): ids_beyond_N[beyond_N == top] for top in np.unique(beyond_N)
  }


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """What came back of a text from its codes alone.

  Attributes:
    text: The decoded bytes.
    byte_accuracy: Bytes that free-running decoding got right, compared within
      each segment; see `evaluation.reconstruction`.
    teacher_forced_byte_accuracy: Bytes predicted right from their code and the
      true bytes before them.
    num_segments: How many segments there were.
    bytes_per_segment: Bytes of the text over `num_segments`.
    exact: Whether `text` is the original.
  """

  text: bytes
  byte_accuracy: float
  teacher_forced_byte_accuracy: float
  num_segments: int
  bytes_per_segment: float
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
) -> list[Reconstruction]:
  """Sums what rows came to over the rows of each text.

  Args:
    originals: What was encoded.
    texts: What came back.
    num_rows_T: Rows of each.
    right_B: [B] bytes that free-running decoding got right.
    total_B: [B] bytes that count.
    forced_B: [B] bytes right given the true ones before them.
    num_segments_B: [B] segments of the first level.

  Returns:
    Of each text.
  """
  results, begin = [], 0
  for original, text, count in zip(originals, texts, num_rows_T, strict=True):
    right, total, forced, segments = (
      x[begin : begin + count].sum()
      for x in (right_B, total_B, forced_B, num_segments_B)
    )
    results.append(
      Reconstruction(
        text=text,
        byte_accuracy=float(right) / float(total),
        teacher_forced_byte_accuracy=float(forced) / len(original),
        num_segments=int(segments),
        bytes_per_segment=len(original) / int(segments),
        exact=text == original,
      )
    )
    begin += count
  return results


def free_running_counts(
  decoded_BPL: Array,
  length_BP: Array,
  origin_BP: Array,
  ids_BS: Array,
  top_BS: Array,
  is_valid_BP: Array,
) -> tuple[Array, Array]:
  """Counts the bytes that decoding got right.

  Each segment of the top level is compared on its own, position by position, so
  that a wrong length spoils its own segment only. A position counts if the
  segment or what was decoded for it has a byte there: the total is the sum over
  segments of the larger number of bytes. EOS is no byte; it ends what was
  decoded.

  So the ratio is 1 only if every byte comes back, and too long is as bad as
  too short.

  Args:
    decoded_BPL: [B, P, L] int32, ids of each segment of the first level.
    length_BP: [B, P] int32, how many of them hold; 0 in empty slots.
    origin_BP: [B, P] int32, the slot of the top level that each comes from,
      ascending; see `CodeRows`.
    ids_BS: [B, S] int32, what was encoded.
    top_BS: [B, S] int32, the slot of the top level of each id; -1 on padding.
    is_valid_BP: [B, P of the top] bool, slots that count.

  Returns:
    Right bytes and their total, [] float32 each.
  """
  num_tops = is_valid_BP.shape[1]
  offset_L = jnp.arange(decoded_BPL.shape[2])
  is_byte_BPL = (decoded_BPL < NUM_BYTES) & (offset_L < length_BP[..., None])
  # Where a decoded id stands in its top segment.
  before_BP = jnp.cumsum(length_BP, axis=1) - length_BP
  last_BP = jnp.pad(origin_BP, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  begin_BP = lax.cummax(jnp.where(origin_BP != last_BP, before_BP, 0), axis=1)
  number_BPL = (before_BP - begin_BP)[..., None] + offset_L

  def per_top(x_BN, top_BN):
    # What has no slot goes to one past the end, which is dropped.
    is_slot_BN = (top_BN >= 0) & (top_BN < num_tops)
    return jax.vmap(
      lambda x, top: jax.ops.segment_sum(x, top, num_segments=num_tops + 1)
    )(x_BN, jnp.where(is_slot_BN, top_BN, num_tops))[:, :num_tops]

  count_BP = per_top(jnp.ones_like(top_BS), top_BS)
  start_BP = jnp.cumsum(count_BP, axis=1) - count_BP

  def of_top(x_BP):
    return jnp.take_along_axis(x_BP, origin_BP, axis=1)[..., None]

  at_BPL = jnp.minimum(of_top(start_BP) + number_BPL, ids_BS.shape[1] - 1)
  truth_BPL = jax.vmap(lambda ids, at: ids[at])(ids_BS, at_BPL)
  is_right_BPL = is_byte_BPL & (number_BPL < of_top(count_BP))
  is_right_BPL &= decoded_BPL == truth_BPL

  def decoded_per_top(x_BPL):
    return per_top(jnp.sum(x_BPL, axis=2, dtype=jnp.int32), origin_BP)

  right_BP = decoded_per_top(is_right_BPL)
  total_BP = jnp.maximum(
    per_top((ids_BS < NUM_BYTES).astype(jnp.int32), top_BS),
    decoded_per_top(is_byte_BPL),
  )

  def count(x_BP):
    return jnp.sum(jnp.where(is_valid_BP, x_BP, 0), dtype=jnp.float32)

  return count(right_BP), count(total_BP)


def decode_output(
  variables: PyTree,
  output: PyramidOutput,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
) -> tuple[Mean, DecodedRows]:
  """Decodes what was encoded from its top codes alone.

  Args:
    variables: `params` and the collections.
    output: From `compress_all`.
    batch: What was encoded.
    model: All levels.

  Returns:
    The free-running accuracy, and what was decoded.
  """
  top = output.levels[-1].compressed
  lowest_BP = segmentation.per_slot(
    segmentation.first_slots(top.segments, output.batches[-1].document_BS),
    top.segments,
    top.is_valid_BP.shape[1],
  )
  decoded = model.apply(
    variables,
    top.quantized.codes_BP,
    top.is_valid_BP,
    lowest_BP,
    sequence_length=batch.ids_BS.shape[1],
    method='decode_all',
  )
  num_right, num_total = free_running_counts(
    decoded.ids_BPL,
    decoded.length_BP,
    decoded.rows.origin_BP,
    batch.ids_BS,
    top_slots(output),
    top.is_valid_BP,
  )
  return Mean(num_right, num_total), decoded


def top_slots(output: PyramidOutput) -> Array:
  """The slot of the top level of each byte, [B, S] int32; -1 without one.

  That is, of the first code of its segment.
  """
  slot_BS = output.levels[0].compressed.segments.index_BS
  for below, above in zip(output.levels, output.levels[1:], strict=False):
    num_slots = below.compressed.is_valid_BP.shape[1]
    index_BU = above.compressed.segments.index_BS
    queries = index_BU.shape[1] // num_slots
    is_slot_BS = (slot_BS >= 0) & (slot_BS < num_slots)
    at_BS = jnp.where(is_slot_BS, slot_BS * queries, 0)
    slot_BS = jnp.where(
      is_slot_BS, jnp.take_along_axis(index_BU, at_BS, axis=1), -1
    )
  return slot_BS
