"""Pytrees of decoding: codes to attend to, known ids, decoded ids."""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from abstractinator.model.attention import CodeKeyValues
from abstractinator.types import Array


@flax.struct.dataclass
class SegmentCodes:
  """Codes of rows, projected for attention, and the segments that see them.

  Attributes:
    remembered: Keys and values of all codes of the rows, one entry per block,
      from `DecoderOnlyExpanderRVQ.remember`.
    own_BP: Slot of the code of each segment to decode, [B, P] int32.
    lowest_BP: First slot that each segment attends to, [B, P] int32.
  """

  remembered: Sequence[CodeKeyValues]
  own_BP: Array
  lowest_BP: Array


@flax.struct.dataclass
class KnownIds:
  """First ids of the next segment of each row that are fixed beforehand.

  A prompt may end within a segment: its ids there are known. One more id may be
  forced after them: the code of a segment that is open at the level below.

  Attributes:
    ids_BL: First ids of the segment, [B, L] int32; arbitrary past `num_ids_B`.
    num_known_B: Ids of the prompt; none of them ends the segment, [B] int32.
    num_ids_B: Known and forced ids together, [B] int32.
  """

  ids_BL: Array
  num_known_B: Array
  num_ids_B: Array


@flax.struct.dataclass
class Position:
  """Position of the id that each of N rows or lanes decodes next.

  Attributes:
    slot_N: Segment of the call that it belongs to, [N] int32.
    offset_N: Its position within the segment, [N] int32.
  """

  slot_N: Array
  offset_N: Array


@flax.struct.dataclass
class Expanded:
  """Ids that segments decode to.

  Attributes:
    ids_BPL: Ids, [B, P, L] int32; 0 past the end of a segment.
    length_BP: Ids of each segment, [B, P] int32; 0 in empty slots.
    nats_BPL: -log p of each id given the codes and the ids before it,
      [B, P, L] float32; None where ids are not drawn.
    end_nats_BPL: -log p of the segment's ending, or not, after each id,
      [B, P, L] float32; 0 where that is certain or known, and where the entropy
      model decides it; None where ids are not drawn.
  """

  ids_BPL: Array
  length_BP: Array
  nats_BPL: Array | None
  end_nats_BPL: Array | None
  num_known_B: Array | None = None


def empty_expanded(
  batch: int, slots: int, longest: int, *, has_nats: bool
) -> Expanded:
  """Returns the outputs of B x P segments before their first ids.

  Args:
    batch: Rows, B.
    slots: Slots of a row, P.
    longest: L, the most ids of a segment.
    has_nats: Whether the costs of ids are recorded.
  """
  zeros_BPL = jnp.zeros((batch, slots, longest), jnp.float32)
  return Expanded(
    ids_BPL=zeros_BPL.astype(jnp.int32),
    length_BP=jnp.zeros((batch, slots), jnp.int32),
    nats_BPL=zeros_BPL if has_nats else None,
    end_nats_BPL=zeros_BPL if has_nats else None,
  )


def record(
  expanded: Expanded,
  where: tuple[Array, Array, Array],
  ids: Array,
  nats: Array | None,
  end_nats: Array | None,
) -> Expanded:
  """Writes one id of each row or lane.

  Args:
    expanded: Outputs so far.
    where: Row, slot and offset of each id, any one shape, int32; a slot past
      the last one writes nothing.
    ids: Ids, int32 of that shape.
    nats: Costs of the ids, float32 of that shape; None if not recorded.
    end_nats: Costs of ends, float32 of that shape; None if not recorded.

  Returns:
    The outputs with these ids.
  """

  def put(x_BPL: Array | None, values: Array | None) -> Array | None:
    if x_BPL is None or values is None:
      return None
    return x_BPL.at[where].set(values, mode='drop')

  return Expanded(
    ids_BPL=expanded.ids_BPL.at[where].set(ids, mode='drop'),
    length_BP=expanded.length_BP.at[where[:2]].add(1, mode='drop'),
    nats_BPL=put(expanded.nats_BPL, nats),
    end_nats_BPL=put(expanded.end_nats_BPL, end_nats),
  )


def new_ids(expanded: Expanded) -> tuple[Array, Array]:
  """Lists the ids of all segments in order.

  Args:
    expanded: Decoded segments that follow a prompt.

  Returns:
    Ids [B, P x L] int32, and where there is one that is new, [B, P x L] bool.
  """
  batch, slots, longest = expanded.ids_BPL.shape
  assert expanded.num_known_B is not None, 'there was no prompt'
  offset_L = jnp.arange(longest)
  is_known_BPL = (jnp.arange(slots) == 0)[:, None] & (
    offset_L < expanded.num_known_B[:, None, None]
  )
  is_new_BPL = (offset_L < expanded.length_BP[..., None]) & ~is_known_BPL
  return (
    expanded.ids_BPL.reshape(batch, -1),
    is_new_BPL.reshape(batch, -1),
  )
