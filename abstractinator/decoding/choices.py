"""Ways to choose ids while codes are decoded.

The two loops, `rows.decode_rows` and `lanes.decode_lanes`, compute the state
that an id is predicted from, and leave it to a choice which id that is and
whether its segment ends there:

  Greedy  the most likely id, and the more likely answer about the end.
  Drawn   samples, unless known ids fix the id.
  Told    given ids, for their costs; none of them ends its segment.
"""

import dataclasses
from typing import ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.decoding.segments import KnownIds, Position
from abstractinator.model.expander import DecoderOnlyExpanderRVQ
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops.sampling import Draws, draw_bools, draw_ids
from abstractinator.types import Array


@flax.struct.dataclass
class Choice:
  """Base of the ways to choose ids, for N rows or lanes.

  The arrays of a subclass have one entry per row.

  Attributes:
    has_nats: Whether `nats` returns costs.
    codebooks: Codebooks of the level below; None over bytes.
  """

  has_nats: ClassVar[bool] = False

  codebooks: Codebooks | None = None

  def repeated(self, times: int) -> Self:
    """Returns the choice for `times` lanes a row, side by side."""
    repeated = jax.tree.map(
      lambda x: jnp.repeat(x, times, axis=0),
      dataclasses.replace(self, codebooks=None),
    )
    return dataclasses.replace(repeated, codebooks=self.codebooks)

  def is_new(self, at: Position) -> Array:
    """Returns which ids count towards the limit of a row, [N] bool."""
    return jnp.ones(at.slot_N.shape, bool)

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> Array:
    """Chooses ids.

    Args:
      expander: A bound expander.
      x_ND: States that ids are predicted from, [N, D].
      at: Positions of the ids.

    Returns:
      Ids, [N] int32.
    """
    raise NotImplementedError

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> Array:
    """Returns where segments end after ids, [N] bool; `ids` has the arguments.

    It is not called where the entropy model says the ends.
    """
    raise NotImplementedError

  def nats(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> Array | None:
    """Returns -log p of ids and of the answers of `ends`, [N] float32."""
    return None


@flax.struct.dataclass
class Greedy(Choice):
  """The most likely id at every position."""

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> Array:
    """Returns the most likely ids, digit by digit, [N] int32."""
    return expander.greedy(x_ND, self.codebooks)

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> Array:
    """Returns where the end head says yes, or an end is certain, [N] bool."""
    return expander.is_end(x_ND, ids_N, at.offset_N, self.codebooks)


@flax.struct.dataclass
class Drawn(Choice):
  """Samples of ids and ends; the first ids of a row may be known.

  The random numbers of an id depend on its row, the number of its segment in
  the document and its offset, not on when or beside what it is decoded.

  Attributes:
    draws: Random keys and filters of the rows.
    known: Known ids of the first segment of the call.
    first_slot_B: Number of that segment in its document, [B] int32.
  """

  draws: Draws = flax.struct.field(kw_only=True)
  known: KnownIds = flax.struct.field(kw_only=True)
  first_slot_B: Array = flax.struct.field(kw_only=True)

  def is_new(self, at: Position) -> Array:
    """Returns which ids a prompt does not hold already, [N] bool."""
    return ~((at.slot_N == 0) & (at.offset_N < self.known.num_known_B))

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> Array:
    """Draws ids, or takes known and forced ones."""
    draws = self._draws(expander, at)
    ids_N, _ = expander.vocabulary.draw(
      x_ND,
      lambda digit, logits: draw_ids(draws.fold(digit), logits),
      self.codebooks,
    )
    is_forced_N = (at.slot_N == 0) & (at.offset_N < self.known.num_ids_B)
    return jnp.where(is_forced_N, self.known.ids_at(at.offset_N), ids_N)

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> Array:
    """Draws the answers of the end head; no known id ends its segment."""
    log_odds_N = expander.end_logits(x_ND, ids_N, self.codebooks)
    draws = self._draws(expander, at).fold(len(expander.sizes))
    is_certain_N = expander.end_is_certain(ids_N, at.offset_N)
    return (draw_bools(draws, log_odds_N) | is_certain_N) & self.is_new(at)

  def _draws(self, expander: DecoderOnlyExpanderRVQ, at: Position) -> Draws:
    longest = expander.config.segmentation.max_length
    number_N = self.first_slot_B + at.slot_N
    return self.draws.fold(number_N * longest + at.offset_N)


@flax.struct.dataclass
class Told(Choice):
  """Given ids of one segment a row, for what they cost under its code.

  Ids past the known ones cost nothing: they stand for an id that is not chosen
  yet, whose state is wanted.

  Attributes:
    known: The ids.
  """

  has_nats: ClassVar[bool] = True

  known: KnownIds = flax.struct.field(kw_only=True)

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> Array:
    """Returns the given ids, [N] int32."""
    return self.known.ids_at(at.offset_N)

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> Array:
    """Returns that no segment ends, [N] bool."""
    return jnp.zeros(ids_N.shape, bool)

  def nats(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> Array:
    """Returns -log p of the known ids and of no end by the head after them."""
    told = expander.vocabulary.predict(x_ND, ids_N, self.codebooks)
    nats_N = expander.vocabulary.nats(told, ids_N)
    if expander.config.expander.ends == 'head':
      log_odds_N = expander.end_logits(x_ND, ids_N, self.codebooks)
      nats_N += jax.nn.softplus(log_odds_N)
    return jnp.where(at.offset_N < self.known.num_known_B, nats_N, 0.0)
