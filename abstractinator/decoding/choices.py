"""Ways to choose ids while codes are decoded.

The two loops, `rows.decode_rows` and `lanes.decode_lanes`, compute the state
that an id is predicted from, and leave it to a choice which id that is and
whether its segment ends there:

  Greedy  the most likely id, and the more likely answer about the end.
  Drawn   samples, unless known ids fix the id.
  Told    given ids, for their costs; none of them ends its segment.
"""

import dataclasses
from typing import ClassVar

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

  Attributes:
    codebooks: Codebooks of the level below; None over bytes.
    has_nats: Whether `ids` and `ends` return costs.
  """

  # Fields with one entry per row.
  BY_ROW: ClassVar[tuple[str, ...]] = ()

  codebooks: Codebooks | None = None
  has_nats: bool = flax.struct.field(pytree_node=False, default=True)

  def repeated(self, times: int) -> 'Choice':
    """Returns the choice for `times` lanes a row, side by side."""
    return dataclasses.replace(
      self,
      **{
        name: jax.tree.map(
          lambda x: jnp.repeat(x, times, axis=0), getattr(self, name)
        )
        for name in self.BY_ROW
      },
    )

  def is_new(self, at: Position) -> Array:
    """Returns which ids count towards the limit of a row, [N] bool."""
    return jnp.ones(at.slot_N.shape, bool)

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> tuple[Array, Array | None]:
    """Chooses ids.

    Args:
      expander: A bound expander.
      x_ND: States that ids are predicted from, [N, D].
      at: Positions of the ids.

    Returns:
      Ids, [N] int32, and their -log p, [N] float32 or None.
    """
    raise NotImplementedError

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> tuple[Array, Array | None]:
    """Chooses whether segments end after ids; arguments are those of `ids`.

    Returns:
      Ends, [N] bool, and their -log p, [N] float32 or None.
    """
    raise NotImplementedError


@flax.struct.dataclass
class Greedy(Choice):
  """The most likely id at every position; costs are not computed."""

  has_nats: bool = flax.struct.field(pytree_node=False, default=False)

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> tuple[Array, None]:
    """Returns the most likely ids, digit by digit, [N] int32."""
    return expander.greedy(x_ND, self.codebooks), None

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> tuple[Array, None]:
    """Returns where the end head says yes, or an end is certain, [N] bool."""
    return expander.is_end(x_ND, ids_N, at.offset_N, self.codebooks), None


@flax.struct.dataclass
class Drawn(Choice):
  """Samples of ids and ends; the first ids of a row may be known.

  The random numbers of an id depend on its row, the number of its segment in
  the document and its offset, not on when or beside what it is decoded.

  Attributes:
    draws: Random keys and filters of the rows.
    known: Known ids of the first segment of the call.
    first_slot_B: Number of that segment in its document, [B] int32.
    longest: L, the most ids of a segment.
  """

  BY_ROW: ClassVar[tuple[str, ...]] = ('draws', 'known', 'first_slot_B')

  draws: Draws = flax.struct.field(kw_only=True)
  known: KnownIds = flax.struct.field(kw_only=True)
  first_slot_B: Array = flax.struct.field(kw_only=True)
  longest: int = flax.struct.field(pytree_node=False, kw_only=True)

  def is_new(self, at: Position) -> Array:
    """Returns which ids a prompt does not hold already, [N] bool."""
    return ~((at.slot_N == 0) & (at.offset_N < self.known.num_known_B))

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> tuple[Array, Array]:
    """Draws ids, or takes known and forced ones; known ones cost nothing."""
    vocabulary, draws = expander.vocabulary, self._draws(at)
    ids_N, nats_N = vocabulary.draw(
      x_ND,
      lambda digit, logits: draw_ids(draws.fold(digit), logits),
      self.codebooks,
    )
    known_N = jnp.take_along_axis(
      self.known.ids_BL, at.offset_N[:, None], axis=1
    )[:, 0]
    is_forced_N = (at.slot_N == 0) & (at.offset_N < self.known.num_ids_B)
    ids_N = jnp.where(is_forced_N, known_N, ids_N)
    if len(expander.sizes) > 1 or not expander.has_eos:
      # Only an id that is a code can be forced without being known.
      told = vocabulary.predict(x_ND, ids_N, self.codebooks)
      nats_N = jnp.where(is_forced_N, vocabulary.nats(told, ids_N), nats_N)
    return ids_N, jnp.where(self.is_new(at), nats_N, 0.0)

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> tuple[Array, Array]:
    """Draws the answers of the end head; no known id ends its segment."""
    log_odds_N = expander.end_logits(x_ND, ids_N, self.codebooks)
    draws = self._draws(at).fold(len(expander.sizes))
    is_certain_N = expander.end_is_certain(ids_N, at.offset_N)
    is_new_N = self.is_new(at)
    is_end_N = (draw_bools(draws, log_odds_N) | is_certain_N) & is_new_N
    nats_N = jax.nn.softplus(jnp.where(is_end_N, -log_odds_N, log_odds_N))
    return is_end_N, jnp.where(is_certain_N | ~is_new_N, 0.0, nats_N)

  def _draws(self, at: Position) -> Draws:
    number_N = self.first_slot_B + at.slot_N
    return self.draws.fold(number_N * self.longest + at.offset_N)


@flax.struct.dataclass
class Told(Choice):
  """Given ids of one segment a row, for what they cost under its code.

  Ids past the known ones cost nothing: they stand for an id that is not chosen
  yet, whose state is wanted.

  Attributes:
    known: The ids.
  """

  BY_ROW: ClassVar[tuple[str, ...]] = ('known',)

  known: KnownIds = flax.struct.field(kw_only=True)

  def ids(
    self, expander: DecoderOnlyExpanderRVQ, x_ND: Array, at: Position
  ) -> tuple[Array, Array]:
    """Returns the given ids and their costs."""
    ids_N = jnp.take_along_axis(
      self.known.ids_BL, at.offset_N[:, None], axis=1
    )[:, 0]
    told = expander.vocabulary.predict(x_ND, ids_N, self.codebooks)
    nats_N = expander.vocabulary.nats(told, ids_N)
    return ids_N, jnp.where(self._is_known(at), nats_N, 0.0)

  def ends(
    self,
    expander: DecoderOnlyExpanderRVQ,
    x_ND: Array,
    ids_N: Array,
    at: Position,
  ) -> tuple[Array, Array]:
    """Returns that no segment ends, and what the end head charges for it."""
    nats_N = jnp.zeros(ids_N.shape)
    if expander.config.expander.ends == 'head':
      log_odds_N = expander.end_logits(x_ND, ids_N, self.codebooks)
      nats_N = jnp.where(self._is_known(at), jax.nn.softplus(log_odds_N), 0.0)
    return jnp.zeros(ids_N.shape, bool), nats_N

  def _is_known(self, at: Position) -> Array:
    return at.offset_N < self.known.num_known_B
