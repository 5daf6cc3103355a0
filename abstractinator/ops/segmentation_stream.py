"""Division into segments of ids that come one at a time."""

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.ops.segmentation_rules import (
  Known,
  Policy,
  Wishes,
  opens,
  wishes,
)
from abstractinator.types import Array, Segments


@flax.struct.dataclass
class SegmenterState:
  """State of the division of a stream, one entry per row.

  Attributes:
    length_B: Ids of the open segment, [B] int32.
    collected_B: Sum that the open segment has collected, [B] int32; see
      `segmentation_rules`.
    document_B: Document of the last id, [B] int32; -1 before the first id.
    position_B: Position of the next id in the document of the last, [B] int32.
    last_entropy_bits_B: Entropy of the prediction of the last id, [B] float32.
    second_last_id_B: The id before the last one, [B] int32.
    third_last_id_B: The id before that, [B] int32.
  """

  length_B: Array
  collected_B: Array
  document_B: Array
  position_B: Array
  last_entropy_bits_B: Array
  second_last_id_B: Array
  third_last_id_B: Array


def initial_state(batch_size: int) -> SegmenterState:
  """Returns the state of rows before their first id."""
  zero_B = jnp.zeros((batch_size,), jnp.int32)
  return SegmenterState(
    length_B=zero_B,
    collected_B=zero_B,
    document_B=zero_B - 1,
    position_B=zero_B,
    last_entropy_bits_B=zero_B.astype(jnp.float32),
    second_last_id_B=zero_B,
    third_last_id_B=zero_B,
  )


def state_after(
  known: Known, wishes: Wishes, segments: Segments, document_BS: Array
) -> SegmenterState:
  """Returns the state after whole rows were divided.

  Args:
    known: Facts known before each id, [B, S] each.
    wishes: Wishes that the rule made of them, [B, S] each.
    segments: Division of the rows, in which slots did not run short.
    document_BS: Document of each id, [B, S] int32, -1 on padding, which only
      ends a row.

  Returns:
    The state that calls of `step` over the same ids lead to.
  """
  num_ids_B = jnp.sum(document_BS >= 0, axis=1, dtype=jnp.int32)
  last_B1 = jnp.maximum(num_ids_B - 1, 0)[:, None]

  def last(x_BS: Array) -> Array:
    return jnp.take_along_axis(x_BS, last_B1, axis=1)[:, 0]

  is_open_BS = segments.index_BS == last(segments.index_BS)[:, None]
  is_counted_BS = is_open_BS & ~segments.is_start_BS
  after = SegmenterState(
    length_B=last(segments.offset_BS) + 1,
    collected_B=jnp.sum(jnp.where(is_counted_BS, wishes.gain, 0), axis=1),
    document_B=last(document_BS),
    position_B=last(known.position) + 1,
    last_entropy_bits_B=last(known.entropy_bits),
    second_last_id_B=last(known.last_id),
    third_last_id_B=last(known.second_last_id),
  )
  return jax.tree.map(
    lambda x, empty: jnp.where(num_ids_B > 0, x, empty),
    after,
    initial_state(document_BS.shape[0]),
  )


def step(
  state: SegmenterState,
  policy: Policy,
  *,
  entropy_bits_B: Array,
  document_B: Array,
  last_id_B: Array,
  last_surprisal_bits_B: Array,
) -> tuple[SegmenterState, Array]:
  """Decides whether the next id opens a segment, before it is seen.

  Fed a row id by id, it opens exactly the segments that `segmentation.segment`
  opens in the whole row if slots do not run short there; a stream has no slots.

  Args:
    state: State after the ids before.
    policy: Settings of the division.
    entropy_bits_B: Entropy of the prediction of the next id, [B] float32.
    document_B: Document of the next id, [B] int32. A row with -1 has no next id
      in this step: its state stays.
    last_id_B: The id before, [B] int32; arbitrary at the start of a document.
    last_surprisal_bits_B: -log2 p of the id before, [B] float32; arbitrary at
      the start of a document.

  Returns:
    The next state, and which rows open a segment, [B] bool.
  """
  is_active_B = document_B >= 0
  is_first_B = document_B != state.document_B
  position_B = jnp.where(is_first_B, 0, state.position_B)
  known = Known(
    entropy_bits=entropy_bits_B,
    last_entropy_bits=state.last_entropy_bits_B,
    last_surprisal_bits=last_surprisal_bits_B,
    last_id=last_id_B,
    second_last_id=state.second_last_id_B,
    third_last_id=state.third_last_id_B,
    position=position_B,
  )
  length_B, collected_B, is_start_B = opens(
    state.length_B,
    state.collected_B,
    wishes(known, policy),
    is_first_B,
    policy.min_length,
    policy.max_length,
  )
  after = SegmenterState(
    length_B=length_B,
    collected_B=collected_B,
    document_B=document_B,
    position_B=position_B + 1,
    last_entropy_bits_B=entropy_bits_B,
    second_last_id_B=last_id_B,
    third_last_id_B=state.second_last_id_B,
  )
  state = jax.tree.map(
    lambda new, old: jnp.where(is_active_B, new, old), after, state
  )
  return state, is_start_B & is_active_B
