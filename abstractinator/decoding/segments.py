"""Pytrees of decoding: codes to attend to, known ids, decoded ids."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.model.attention import CodeKeyValues
from abstractinator.model.expander import DecoderOnlyExpanderRVQ
from abstractinator.model.level import Abstractinator
from abstractinator.model.transformer import StepCodes
from abstractinator.model.vocabulary import ChooseDigit, Codebooks, IdLogits
from abstractinator.ops import dictionary
from abstractinator.ops.compact import compact
from abstractinator.ops.dictionary import Spelling
from abstractinator.types import Array


@flax.struct.dataclass
class SegmentCodes:
  """Codes of rows, projected for attention, and the segments that see them.

  Attributes:
    remembered: Keys and values of all codes of the rows, one entry per block,
      from `DecoderOnlyExpanderRVQ.remember`.
    lowest_BP: First slot that each segment to decode attends to, [B, P] int32.
    num_before: Slots before that of the first segment to decode.
    spelled_BUL: Segments of the codes; see `Quantizer.spell`.
  """

  remembered: Sequence[CodeKeyValues]
  lowest_BP: Array
  num_before: int = flax.struct.field(pytree_node=False, default=0)
  spelled_BUL: Array | None = None

  @classmethod
  def of(
    cls, level: Abstractinator, codes_BU: Array, lowest_BP: Array
  ) -> 'SegmentCodes':
    """Projects codes that no top LM predicts.

    Args:
      level: A bound level.
      codes_BU: Codes, those of a slot side by side, [B, U] int32.
      lowest_BP: First slot that each segment attends to, [B, P] int32.
    """
    quantizer = level.compressor.quantizer
    return cls(
      level.expander.remember(quantizer.lookup(codes_BU)),
      lowest_BP,
      spelled_BUL=quantizer.spell(codes_BU),
    )

  def level(self, module: Any) -> Abstractinator:
    """Returns the level that decodes: the module of the loop."""
    return module

  def open(
    self, module: Any, state: Any, place: Any, opens_B: Array
  ) -> tuple[Any, Array]:
    """Returns that no row ends as segments open: all codes are given."""
    return state, jnp.zeros_like(opens_B)

  def seen(self, state: Any, slot_B: Array) -> StepCodes:
    """Returns the codes that ids of the slots, [B] int32, attend to."""
    return self.seen_from(slot_B[:, None])

  def read(
    self, module: Any, state: Any, place: Any, ids_B: Array, active_B: Array
  ) -> Any:
    """Returns the state: given codes do not depend on decoded ids."""
    return state

  def seen_from(self, segment_RT: Array) -> StepCodes:
    """Returns the codes that ids attend to.

    Args:
      segment_RT: Segments of T ids of each row, counted from the first one to
        decode, [R, T] int32.
    """
    lowest_RT = jnp.take_along_axis(self.lowest_BP, segment_RT, axis=1)
    return StepCodes(self.remembered, self.num_before + segment_RT, lowest_RT)

  def spelling(
    self, state: Any, slot_RT: Array, offset_RT: Array
  ) -> Spelling | None:
    """Returns what the codes of slots say about ids at offsets."""
    return flat_spelling(self.spelled_BUL, self.num_before + slot_RT, offset_RT)


def flat_spelling(
  spelled_BUL: Array | None, slot_RT: Array, offset_RT: Array
) -> Spelling | None:
  """Returns `dictionary.spelling` of N = R x T ids, one after the other."""
  return jax.tree.map(
    jnp.ravel, dictionary.spelling(spelled_BUL, slot_RT, offset_RT)
  )


class CodeSource(Protocol):
  """Source of the codes that `rows.decode_rows` decodes.

  Its methods take the module of the loop and a state of their own, which the
  loop carries, None or a pytree.

  Attributes:
    lowest_BP: First slot that each segment to decode attends to, [B, P] int32.
    num_before: Slots before that of the first segment to decode.
  """

  @property
  def lowest_BP(self) -> Array: ...  # noqa: N802

  @property
  def num_before(self) -> int: ...

  def level(self, module: Any) -> Abstractinator:
    """Returns the level that decodes."""
    ...

  def open(
    self, module: Any, state: Any, place: Any, opens_B: Array
  ) -> tuple[Any, Array]:
    """Takes the codes of segments that open.

    Args:
      module: The module of the loop.
      state: State of the source.
      place: Place of the next ids: `document_B`, `slot_B` and `offset_B`.
      opens_B: Rows whose next id opens a segment, [B] bool.

    Returns:
      The state, and the rows that end here, [B] bool.
    """
    ...

  def seen(self, state: Any, slot_B: Array) -> StepCodes:
    """Returns the codes that ids of the slots, [B] int32, attend to."""
    ...

  def spelling(
    self, state: Any, slot_RT: Array, offset_RT: Array
  ) -> Spelling | None:
    """Returns what codes alone say about R x T ids, [N]; None for nothing.

    Args:
      state: State of the source.
      slot_RT: Segments of the ids, counted from the first one to decode, [R, T]
        int32.
      offset_RT: Positions of the ids in their segments, [R, T] int32.
    """
    ...

  def read(
    self, module: Any, state: Any, place: Any, ids_B: Array, active_B: Array
  ) -> Any:
    """Reads the ids that active rows have decoded; returns the state."""
    ...


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

  def unless(self, is_past_B: Array) -> 'KnownIds':
    """Returns the known ids, none for rows whose segment is past."""
    return KnownIds(
      self.ids_BL,
      jnp.where(is_past_B, 0, self.num_known_B),
      jnp.where(is_past_B, 0, self.num_ids_B),
    )

  def ids_at(self, offset_B: Array) -> Array:
    """Returns the id at an offset of each row, [B] int32."""
    return jnp.take_along_axis(self.ids_BL, offset_B[:, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class NextIds:
  """Next ids of N rows or lanes: their positions, and what predicts them.

  Attributes:
    expander: A bound expander.
    codebooks: Codebooks of the level below; None over bytes.
    x_ND: States that the ids are predicted from, [N, D].
    slot_N: Segment of the call that each id belongs to, [N] int32.
    offset_N: Position of each id within its segment, [N] int32.
    base_NV: Logits of the entropy model that the expander adds to, [N, V]
      float32; None without.
    spelling: Ids and ends that follow from the codes alone, [N]; None for none.
  """

  expander: DecoderOnlyExpanderRVQ
  codebooks: Codebooks | None
  x_ND: Array
  slot_N: Array
  offset_N: Array
  base_NV: Array | None = None
  spelling: Spelling | None = None

  def predict(self, ids_N: Array | None = None) -> IdLogits:
    """Returns `Vocabulary.predict` of the states."""
    predicted = self.expander.vocabulary.predict(
      self.x_ND, ids_N, self.codebooks, self.base_NV
    )
    return predicted.told(self.spelling)

  def draw(self, choose: ChooseDigit) -> Array:
    """Returns ids whose digits a function chooses, [N] int32."""
    ids_N, _ = self.expander.vocabulary.draw(
      self.x_ND, choose, self.codebooks, self.base_NV
    )
    if self.spelling is None:
      return ids_N
    return jnp.where(self.spelling.is_given, self.spelling.ids, ids_N)

  def end_logits(self, ids_N: Array) -> Array:
    """Returns the log-odds of the head that ids end segments, [N] float32."""
    return self.expander.end_logits(
      self.x_ND, ids_N, self.codebooks, self.spelling
    )

  def ends(self, is_end_N: Array) -> Array:
    """Returns which ids end segments, [N] bool; codes may know better."""
    return is_end_N if self.spelling is None else self.spelling.ends(is_end_N)


@flax.struct.dataclass
class Expanded:
  """Ids that segments decode to.

  Attributes:
    ids_BPL: Ids, [B, P, L] int32; 0 past the end of a segment.
    length_BP: Ids of each segment, [B, P] int32; 0 in empty slots.
    nats_BPL: Cost of each id as `Choice.nats` says it, [B, P, L] float32; None
      where the choice of ids has no costs.
  """

  ids_BPL: Array
  length_BP: Array
  nats_BPL: Array | None

  def record(
    self, where: tuple[Array, Array, Array], ids: Array, nats: Array | None
  ) -> 'Expanded':
    """Writes one id of each row or lane.

    Args:
      where: Row, slot and offset of each id, any one shape, int32; a slot past
        the last one writes nothing.
      ids: Ids, int32 of that shape.
      nats: Costs, float32 of that shape; None without costs.

    Returns:
      The ids so far with these.
    """
    nats_BPL = self.nats_BPL
    if nats_BPL is not None and nats is not None:
      nats_BPL = nats_BPL.at[where].set(nats, mode='drop')
    return Expanded(
      ids_BPL=self.ids_BPL.at[where].set(ids, mode='drop'),
      length_BP=self.length_BP.at[where[:2]].add(1, mode='drop'),
      nats_BPL=nats_BPL,
    )


def empty_expanded(
  batch: int, slots: int, longest: int, *, has_nats: bool
) -> Expanded:
  """Returns B x P segments of at most L ids before their first ids."""
  shape = batch, slots, longest
  return Expanded(
    ids_BPL=jnp.zeros(shape, jnp.int32),
    length_BP=jnp.zeros((batch, slots), jnp.int32),
    nats_BPL=jnp.zeros(shape, jnp.float32) if has_nats else None,
  )


def new_ids(expanded: Expanded, num_known_B: Array) -> tuple[Array, Array]:
  """Lists the ids of all segments in order, without those of a prompt.

  Args:
    expanded: Decoded segments.
    num_known_B: First ids of the first segment that are not new, [B] int32.

  Returns:
    Ids [B, P x L] int32, new ones at the front, and their number, [B] int32.
  """
  batch, slots, longest = expanded.ids_BPL.shape
  offset_L = jnp.arange(longest)
  first_BP = jnp.where(jnp.arange(slots) == 0, num_known_B[:, None], 0)
  is_new_BPL = offset_L < expanded.length_BP[..., None]
  is_new_BPL &= offset_L >= first_BP[..., None]
  return compact(
    expanded.ids_BPL.reshape(batch, -1), is_new_BPL.reshape(batch, -1)
  )
