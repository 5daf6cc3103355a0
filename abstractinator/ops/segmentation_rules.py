"""Rules that say which ids want to open a segment, and one step of the walk.

Every rule is brought to one form: an open segment collects a number at each id,
and an id wants to open the next segment when the collected sum reaches the
number that this id needs. The numbers are whole, in units of 2^-12, so that
sums do not depend on the order or the way they are compiled: ids that come one
at a time (`segmentation_stream`) are divided exactly as whole rows are.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp

from abstractinator.types import Array

_UNIT_BITS = 12
_UNITS = 1 << _UNIT_BITS
_NEVER = jnp.iinfo(jnp.int32).max
# 2^32 over the golden ratio: multiples of it fill the circle evenly.
_GOLDEN = 2654435769


@flax.struct.dataclass
class Known:
  """Facts that are known before an id is seen, arrays of any one shape.

  Values are arbitrary where the document has no such earlier id.

  Attributes:
    entropy_bits: Entropy of the prediction of the id, float32.
    last_entropy_bits: Entropy of the prediction of the id before, float32.
    last_surprisal_bits: -log2 p of the id before, as predicted, float32.
    last_id: The id before, int32.
    second_last_id: The id two before, int32.
    third_last_id: The id three before, int32.
    position: Number of the id in its document, from 0, int32.
  """

  entropy_bits: Array
  last_entropy_bits: Array
  last_surprisal_bits: Array
  last_id: Array
  second_last_id: Array
  third_last_id: Array
  position: Array


class Wishes(NamedTuple):
  """Wishes of ids to open a segment.

  Attributes:
    gain: Number that the open segment collects before the id decides, int32.
    need: Sum at which the id wants to open a segment, int32: of all gains since
      the first id of the open segment decided.
  """

  gain: Array
  need: Array

  @classmethod
  def at(cls, wants: Array) -> 'Wishes':
    """Returns wishes that do not depend on the segment; `wants` is bool."""
    wants = jnp.asarray(wants)
    return cls(jnp.zeros(wants.shape, jnp.int32), jnp.where(wants, 0, _NEVER))


@flax.struct.dataclass
class Policy:
  """Settings by which rows are divided.

  Attributes:
    threshold: Threshold of the rule, [] float32.
    rule: Name of one of `RULES`.
    min_length: Fewest ids of a segment, except at the end of a document.
    max_length: Most ids of a segment.
  """

  threshold: Array
  rule: str = flax.struct.field(pytree_node=False)
  min_length: int = flax.struct.field(pytree_node=False)
  max_length: int = flax.struct.field(pytree_node=False)


def wishes(known: Known, policy: Policy) -> Wishes:
  """Returns the wishes of a policy's rule, of the shape of `known`."""
  return RULES[policy.rule].wish(known, policy)


def opens(
  length: Array,
  collected: Array,
  wish: Wishes,
  is_first: Array,
  min_length: int,
  max_length: int,
) -> tuple[Array, Array, Array]:
  """Decides for one id of each row whether it opens a segment.

  Arrays broadcast against each other.

  Args:
    length: Ids of the open segment, int32.
    collected: Sum that the open segment has collected, int32.
    wish: Wish of the id.
    is_first: True for the first id of a document, bool.
    min_length: Fewest ids of a segment, except at the end of a document.
    max_length: Most ids of a segment.

  Returns:
    Length and sum of the segment with the id, and True where the id opens it.
  """
  collected = collected + wish.gain
  wants = (length >= min_length) & (collected >= wish.need)
  is_start = is_first | (length >= max_length) | wants
  return (
    jnp.where(is_start, 1, length + 1),
    jnp.where(is_start, 0, collected),
    is_start,
  )


def is_space(ids: Array) -> Array:
  """Finds ids that end a word: all but letters, digits and other characters.

  Letters and digits are those of ASCII. Other characters are those of several
  bytes, 0x80 to 0xFF, which are parts of words.

  Source: Slagle, SpaceByte, arXiv:2404.14408, section 3, where the first byte
    of a character of several bytes ends a word, within the character.
  """
  c = jnp.asarray(ids)
  is_digit = (c >= ord('0')) & (c <= ord('9'))
  is_upper = (c >= ord('A')) & (c <= ord('Z'))
  is_lower = (c >= ord('a')) & (c <= ord('z'))
  return ~(is_digit | is_upper | is_lower | _is_within(c, 0x80, 0xFF))


def _is_within(ids: Array, low: int, high: int) -> Array:
  return (ids >= low) & (ids <= high)


def _characters(known: Known) -> tuple[Array, Array]:
  """Finds where an id stands in UTF-8 text, from the ids before it.

  Returns:
    Whether the id continues a character, bool; and the bytes of the character
    that ends before it, int32, 1 for one of ASCII.
  """
  last = known.last_id
  second = jnp.where(known.position >= 2, known.second_last_id, 0)
  third = jnp.where(known.position >= 3, known.third_last_id, 0)
  # The first byte says how many follow: 1 from 0xC0 on, 2 from 0xE0 on, 3 from
  # 0xF0 on.
  follows_one = _is_within(last, 0x80, 0xBF)
  follows_two = follows_one & _is_within(second, 0x80, 0xBF)
  is_inside = (
    _is_within(last, 0xC0, 0xFF)
    | (follows_one & _is_within(second, 0xE0, 0xFF))
    | (follows_two & _is_within(third, 0xF0, 0xFF))
  )
  is_of_two = _is_within(second, 0xC0, 0xFF)
  is_of_three = follows_two & _is_within(third, 0xE0, 0xEF)
  size = jnp.where(is_of_two, 2, jnp.where(is_of_three, 3, 4))
  return is_inside, jnp.where(follows_one, size, 1)


def _entropy_delta(known: Known, policy: Policy) -> Wishes:
  """Begins a segment if the entropy jumps by more than the threshold, bits.

  Source: the approximate monotonicity constraint of Pagnoni et al., Byte Latent
    Transformer, arXiv:2412.09871, section 2.3.
  """
  jump = known.entropy_bits - known.last_entropy_bits
  return Wishes.at(jump > policy.threshold)


def _entropy_threshold(known: Known, policy: Policy) -> Wishes:
  """Begins a segment if the entropy is above the threshold, bits.

  Source: the global constraint of Byte Latent Transformer, section 2.3.
  """
  return Wishes.at(known.entropy_bits > policy.threshold)


def _equal_information(known: Known, policy: Policy) -> Wishes:
  """Begins a segment if the open one would exceed the threshold, bits.

  The bits of the open segment are the surprisals of its ids; the entropy is the
  surprisal to expect of the id at hand.
  """
  need = _whole(policy.threshold) - _whole(known.entropy_bits) + 1
  return Wishes(_whole(known.last_surprisal_bits), need)


def _stride(known: Known, policy: Policy) -> Wishes:
  """Begins a segment every `threshold` ids, counted in the document.

  Segment k begins at id ceil(k threshold): lengths of a fractional stride are
  the whole numbers around it, in turns. A stride below 1 is 1.
  """
  # The part of the stride that lies behind, in units of 2^-31 of a stride; it
  # wraps around where a stride begins. The step is rounded up, so that whole
  # strides come out whole.
  half = jnp.float32(2**31)
  a_step = jnp.nextafter(half / jnp.maximum(policy.threshold, 1.0), 2 * half)
  a_step = a_step.astype(jnp.uint32)
  part = (known.position.astype(jnp.uint32) * a_step) & jnp.uint32(2**31 - 1)
  return Wishes.at(part < a_step)


def _space(known: Known, policy: Policy) -> Wishes:
  """Begins a segment after the first of a run of bytes that end words.

  At a threshold of 0 words are segments. A threshold above 0 merges short
  words: a word begins a segment only if the open one has that many ids more
  than `min_length`. A threshold below 0 cuts long words: any id begins a
  segment that many ids before `max_length`. A fraction of an id holds for this
  fraction of the positions in the document, which are spread evenly.

  No id within a UTF-8 character wants to begin a segment. Where the open one
  has no room for another character of several bytes like the last, it ends.

  Source: Slagle, SpaceByte, arXiv:2404.14408, section 3; the threshold and the
    treatment of characters of several bytes are ours.
  """
  is_word = is_space(known.last_id) & ~(
    (known.position >= 2) & is_space(known.second_last_id)
  )
  spread = known.position.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
  fraction = (spread >> (32 - _UNIT_BITS)).astype(jnp.int32)
  least = jnp.where(is_word, policy.min_length, policy.max_length)
  # The open segment collects 1 for each id.
  need = _whole(policy.threshold) + least * _UNITS - fraction
  is_inside, size = _characters(known)
  room = (policy.max_length - size + 1) * _UNITS
  need = jnp.where(size > 1, jnp.minimum(need, room), need)
  need = jnp.where(is_inside, _NEVER, need)
  return Wishes(jnp.full_like(need, _UNITS), need)


def _whole(x: Array) -> Array:
  """Rounds bits or ids to whole units of 2^-12, int32."""
  return jnp.round(x * _UNITS).astype(jnp.int32)


class SegmentationRule(NamedTuple):
  """Rule by which ids want to open segments.

  Attributes:
    wish: Function from the known facts and the policy to wishes.
    move: Name of the move that calibrates its threshold, see
      `calibration.MOVES`.
  """

  wish: Callable[[Known, Policy], Wishes]
  move: str


RULES = {
  'entropy_delta': SegmentationRule(_entropy_delta, 'bits'),
  'entropy_threshold': SegmentationRule(_entropy_threshold, 'bits'),
  'equal_information': SegmentationRule(_equal_information, 'relative'),
  'stride': SegmentationRule(_stride, 'relative'),
  'space': SegmentationRule(_space, 'ids'),
}
