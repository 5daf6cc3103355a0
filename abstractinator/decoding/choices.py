"""Ways to choose ids while codes are decoded.

The two loops, `rows.decode_rows` and `lanes.decode_lanes`, compute the state
that an id is predicted from, and leave it to a choice which id that is and
whether its segment ends there:

  Greedy  the most likely id, and the more likely answer about the end.
  Drawn   samples, unless known ids fix the id.
  Told    given ids, for their costs; none of them ends its segment.
"""

from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.decoding.segments import KnownIds, NextIds
from abstractinator.ops.sampling import Draws, draw_bools, draw_ids
from abstractinator.types import Array


@flax.struct.dataclass
class Choice:
  """Base of the ways to choose ids; all arrays have one entry per row.

  Attributes:
    has_nats: Whether `nats` returns costs.
  """

  has_nats: ClassVar[bool] = False

  def is_new(self, at: NextIds) -> Array:
    """Returns which ids count towards the limit of a row, [N] bool."""
    return jnp.ones(at.slot_N.shape, bool)

  def may_end(self, at: NextIds) -> Array:
    """Returns which ids may be the last of their segments, [N] bool."""
    return jnp.ones(at.slot_N.shape, bool)

  def ids(self, at: NextIds) -> Array:
    """Chooses ids, [N] int32."""
    raise NotImplementedError

  def ends(self, at: NextIds, ids_N: Array) -> Array:
    """Returns where segments end after the chosen ids, [N] bool.

    It is not called where the entropy model says the ends.
    """
    raise NotImplementedError

  def nats(self, at: NextIds, ids_N: Array) -> Array | None:
    """Returns -log p of ids and of the answers of `ends`, [N] float32."""
    return None


@flax.struct.dataclass
class Greedy(Choice):
  """The most likely id at every position."""

  def ids(self, at: NextIds) -> Array:
    """Returns the most likely ids, digit by digit, [N] int32."""
    return at.predict().best

  def ends(self, at: NextIds, ids_N: Array) -> Array:
    """Returns where the end head says yes, or an end is certain, [N] bool."""
    is_certain_N = at.expander.end_is_certain(ids_N, at.offset_N)
    return (at.end_logits(ids_N) > 0) | is_certain_N


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

  draws: Draws
  known: KnownIds
  first_slot_B: Array

  def is_new(self, at: NextIds) -> Array:
    """Returns which ids a prompt does not hold already, [N] bool."""
    return ~((at.slot_N == 0) & (at.offset_N < self.known.num_known_B))

  def may_end(self, at: NextIds) -> Array:
    """Returns which ids are new: no known id ends its segment, [N] bool."""
    return self.is_new(at)

  def ids(self, at: NextIds) -> Array:
    """Draws ids, or takes known and forced ones, [N] int32."""
    draws = self._draws(at)
    ids_N = at.draw(lambda digit, logits: draw_ids(draws.fold(digit), logits))
    is_forced_N = (at.slot_N == 0) & (at.offset_N < self.known.num_ids_B)
    return jnp.where(is_forced_N, self.known.ids_at(at.offset_N), ids_N)

  def ends(self, at: NextIds, ids_N: Array) -> Array:
    """Draws the answers of the end head; no known id ends its segment."""
    log_odds_N = at.end_logits(ids_N)
    draws = self._draws(at).fold(len(at.expander.sizes))
    is_certain_N = at.expander.end_is_certain(ids_N, at.offset_N)
    return (draw_bools(draws, log_odds_N) | is_certain_N) & self.is_new(at)

  def _draws(self, at: NextIds) -> Draws:
    longest = at.expander.config.segmentation.max_length
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

  known: KnownIds

  def may_end(self, at: NextIds) -> Array:
    """Returns that no segment ends, [N] bool."""
    return jnp.zeros(at.slot_N.shape, bool)

  def ids(self, at: NextIds) -> Array:
    """Returns the given ids, [N] int32."""
    return self.known.ids_at(at.offset_N)

  def ends(self, at: NextIds, ids_N: Array) -> Array:
    """Returns that no segment ends, [N] bool."""
    return self.may_end(at)

  def nats(self, at: NextIds, ids_N: Array) -> Array:
    """Returns -log p of the known ids and of no end by the head after them."""
    nats_N = at.expander.vocabulary.nats(at.predict(ids_N), ids_N)
    if at.expander.config.expander.ends == 'head':
      log_odds_N = at.end_logits(ids_N)
      nats_N += jax.nn.softplus(log_odds_N)
    return jnp.where(at.offset_N < self.known.num_known_B, nats_N, 0.0)
