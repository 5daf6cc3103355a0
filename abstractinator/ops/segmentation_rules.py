"""What makes an id want to open a segment, and the walk over the ids.

Every rule is brought to one form: an open segment collects a number at each id,
and an id wants to open the next one when what was collected reaches what that
id needs. The numbers are whole, in units of 2^-12, so that sums do not depend
on the order or the way they are compiled: ids that come one at a time
(`segmentation_stream`) are divided exactly as whole rows are.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp

from abstractinator.types import Array

_UNIT_BITS = 12
_UNITS = 1 << _UNIT_BITS
_NEVER = jnp.iinfo(jnp.int32).max
_NUM_BYTES = 256
# 2^32 over the golden ratio: multiples of it fill the circle evenly.
_GOLDEN = 2654435769


@flax.struct.dataclass
class Known:
  """What is known before an id is seen; arrays of any one shape.

  Where a document has no such earlier id, anything may stand.

  Attributes:
    entropy_bits: float32, entropy of the prediction of the id.
    last_entropy_bits: float32, the same of the id before.
    last_surprisal_bits: float32, -log2 p of the id before, as predicted.
    last_id: int32, the id before.
    second_last_id: int32, the id before that.
    position: int32, number of the id in its document, from 0.
  """

  entropy_bits: Array
  last_entropy_bits: Array
  last_surprisal_bits: Array
  last_id: Array
  second_last_id: Array
  position: Array


class Wishes(NamedTuple):
  """Ids that want to open a segment.

  Attributes:
    gain: int32, what the open segment collects before the id decides.
    need: int32, the id wants to open a segment if that much is collected since
      the segment's first id decided.
  """

  gain: Array
  need: Array

  @classmethod
  def at(cls, wants: Array) -> 'Wishes':
    """Wishes that stand whatever the segment holds; `wants` is bool."""
    wants = jnp.asarray(wants)
    return cls(jnp.zeros(wants.shape, jnp.int32), jnp.where(wants, 0, _NEVER))


@flax.struct.dataclass
class Policy:
  """How to divide.

  Attributes:
    threshold: [] float32, of the rule.
    rule: One of `RULES`.
    min_length: Smallest segment, except at the end of a document.
    max_length: Largest segment.
  """

  threshold: Array
  rule: str = flax.struct.field(pytree_node=False)
  min_length: int = flax.struct.field(pytree_node=False)
  max_length: int = flax.struct.field(pytree_node=False)


def wishes(known: Known, policy: Policy) -> Wishes:
  """Wishes of a policy's rule, of the shape of `known`."""
  return RULES[policy.rule].wish(known, policy)


def opens(
  length: Array,
  collected: Array,
  wish: Wishes,
  is_first: Array,
  min_length: int,
  max_length: int,
) -> tuple[Array, Array, Array]:
  """One id of the walk; arrays that broadcast against each other.

  Args:
    length: int32, ids of the open segment.
    collected: int32, what it has collected.
    wish: Of the id.
    is_first: bool, the id is the first of its document.
    min_length: See `Policy`.
    max_length: See `Policy`.

  Returns:
    Length and sum with the id, and whether it opens a segment.
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
  """Bytes that end a word: all but letters, digits and continuations.

  Letters and digits are those of ASCII; continuations are the bytes of a UTF-8
  character after its first, 0x80 to 0xBF.

  Source: Slagle, SpaceByte, arXiv:2404.14408, section 3.
  """
  c = jnp.asarray(ids)
  is_digit = (c >= ord('0')) & (c <= ord('9'))
  is_upper = (c >= ord('A')) & (c <= ord('Z'))
  is_lower = (c >= ord('a')) & (c <= ord('z'))
  is_continuation = (c >= 0x80) & (c <= 0xBF)
  return ~(is_digit | is_upper | is_lower | is_continuation)


def check_rule(rule: str, num_ids: int) -> None:
  """Raises ValueError if a rule cannot divide ids of a level.

  Args:
    rule: One of `RULES`.
    num_ids: Ordinary ids of the level.

  Raises:
    ValueError: If the rule is about bytes and the ids are not.
  """
  if rule == 'space' and num_ids != _NUM_BYTES:
    raise ValueError(
      f'segmentation.rule: got {rule!r} for {num_ids} ids, allowed:'
      f' {", ".join(name for name in RULES if name != rule)}, where ids are not'
      ' bytes'
    )


def _entropy_delta(known: Known, policy: Policy) -> Wishes:
  """The entropy jumps by more than the threshold, bits.

  Source: the approximate monotonicity constraint of Pagnoni et al., Byte Latent
    Transformer, arXiv:2412.09871, section 2.3.
  """
  jump = known.entropy_bits - known.last_entropy_bits
  return Wishes.at(jump > policy.threshold)


def _entropy_threshold(known: Known, policy: Policy) -> Wishes:
  """The entropy is above the threshold, bits.

  Source: the global constraint of Byte Latent Transformer, section 2.3.
  """
  return Wishes.at(known.entropy_bits > policy.threshold)


def _equal_information(known: Known, policy: Policy) -> Wishes:
  """The bits spent on the segment and the entropy exceed the threshold, bits.

  Spent are the surprisals of the ids in the segment; the entropy is what the id
  at hand will cost on average.
  """
  need = _whole(policy.threshold) - _whole(known.entropy_bits) + 1
  return Wishes(_whole(known.last_surprisal_bits), need)


def _stride(known: Known, policy: Policy) -> Wishes:
  """Segments of `threshold` ids, counted from the document's first.

  The k-th begins at id ceil(k threshold): lengths of a fractional stride are
  the whole numbers around it, in turns. A stride below 1 is 1.
  """
  # The part of a stride gone, in 2^-31 of it, wraps around where one begins.
  # Rounded up, so that whole strides come out whole.
  half = jnp.float32(2**31)
  a_step = jnp.nextafter(half / jnp.maximum(policy.threshold, 1.0), 2 * half)
  a_step = a_step.astype(jnp.uint32)
  gone = (known.position.astype(jnp.uint32) * a_step) & jnp.uint32(2**31 - 1)
  return Wishes.at(gone < a_step)


def _space(known: Known, policy: Policy) -> Wishes:
  """After the first of a run of bytes that end words, paced by the threshold.

  At 0 words are segments. Above, as many ids more than `min_length` must lie in
  the open segment for a word to begin another: short words are merged. Below,
  any id opens a segment that many ids before `max_length`: long words are cut.
  Fractions hold for a fraction of the places, spread evenly and determined by
  the position in the document.

  Source: Slagle, SpaceByte, arXiv:2404.14408, section 3; the threshold is ours.
  """
  is_word = is_space(known.last_id) & ~(
    (known.position >= 2) & is_space(known.second_last_id)
  )
  spread = known.position.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
  fraction = (spread >> (32 - _UNIT_BITS)).astype(jnp.int32)
  least = jnp.where(is_word, policy.min_length, policy.max_length)
  # Collected are the ids themselves.
  need = _whole(policy.threshold) + least * _UNITS - fraction
  return Wishes(jnp.full_like(need, _UNITS), need)


def _whole(x: Array) -> Array:
  return jnp.round(x * _UNITS).astype(jnp.int32)


class Rule(NamedTuple):
  """A rule.

  Attributes:
    wish: Wishes, from what is known and the policy.
    move: How its threshold is calibrated, see `calibration.MOVES`.
  """

  wish: Callable[[Known, Policy], Wishes]
  move: str


RULES = {
  'entropy_delta': Rule(_entropy_delta, 'bits'),
  'entropy_threshold': Rule(_entropy_threshold, 'bits'),
  'equal_information': Rule(_equal_information, 'relative'),
  'stride': Rule(_stride, 'relative'),
  'space': Rule(_space, 'ids'),
}
