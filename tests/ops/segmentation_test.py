import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import segmentation
from abstractinator.ops.segmentation_rules import Wishes


@functools.cache
def jitted(min_length, max_length, num_slots):
  return jax.jit(
    functools.partial(
      segmentation.segment,
      min_length=min_length,
      max_length=max_length,
      num_slots=num_slots,
    )
  )


def segment(wants, document, min_length, max_length, num_slots):
  segments = jitted(min_length, max_length, num_slots)(
    Wishes.at(wants), jnp.asarray(document, jnp.int32)
  )
  return jax.tree.map(np.asarray, segments)


def smallest_number_of_slots(document, max_length):
  """Returns the fewest segments into which one row can be divided."""
  lengths = np.bincount(document[document >= 0])
  return sum(math.ceil(n / max_length) for n in lengths)


def id_by_id(wants, document, min_length, max_length, num_slots):
  """Follows the docstring of `segment` for one row, id by id.

  Returns:
    True for ids that open a segment, and for those after slots ran short.
  """
  size = int((document >= 0).sum())
  needed = smallest_number_of_slots
  opens = np.zeros(len(document), bool)
  is_bound = np.zeros(len(document), bool)
  used = length = 0
  denied = False
  for s in range(size):
    is_first = s == 0 or document[s] != document[s - 1]
    is_forced = is_first or length == max_length
    is_wish = not is_forced and wants[s] and length >= min_length
    if is_wish and not denied:
      # This segment begins here; what it and the rest need at the least.
      denied = used + needed(document[s:], max_length) > num_slots
    opens[s] = is_forced or (is_wish and not denied)
    is_bound[s] = denied
    length = 1 if opens[s] else length + 1
    used += int(opens[s])
  return opens, is_bound


def make_rows(rng, rows, size):
  """Returns wishes, rare to everywhere, and documents of all lengths."""
  wants = rng.random((rows, size)) < rng.choice([0.05, 0.3, 0.6, 1], (rows, 1))
  cuts = rng.random((rows, size)) < rng.choice([0, 0.05, 0.2, 0.7], (rows, 1))
  document = np.cumsum(cuts, axis=1) - cuts[:, :1]
  real = rng.choice([0, 1, size // 2, size - 1, size], (rows, 1))
  return wants, np.where(np.arange(size) < real, document, -1)


SETTINGS = [
  # Size, min_length, max_length.
  (1, 1, 1),
  (24, 1, 1),
  (24, 3, 3),
  (23, 1, 4),
  (47, 2, 6),
  (130, 3, 9),
]


@functools.cache
def divided(size, min_length, max_length, slots):
  """Returns rows, their fewest slots, the number of slots and segments."""
  rng = np.random.default_rng(size + max_length)
  wants, document = make_rows(rng, 60, size)
  least = np.array([smallest_number_of_slots(d, max_length) for d in document])
  # Many rows need exactly as many slots as there are.
  rows_of_least = np.bincount(least, minlength=3)
  rows_of_least[:2] = 0
  tight = max(1, int(rows_of_least.argmax()))
  num_slots = {'tight': tight, 'some more': tight + 3, 'plenty': size}[slots]
  got = segment(wants, document, min_length, max_length, num_slots)
  return wants, document, least, num_slots, got


def on_rows(test):
  """Runs a test on all rows; they are divided once for the module's tests."""
  of_slots = pytest.mark.parametrize(
    'slots', ['tight', 'some more', 'plenty'], scope='module'
  )
  of_sizes = pytest.mark.parametrize(
    ('size', 'min_length', 'max_length'), SETTINGS, scope='module'
  )
  return of_sizes(of_slots(test))


@on_rows
def test_agrees_with_following_the_ids_one_by_one(
  size, min_length, max_length, slots
):
  """All rows share one call and its number of slots."""
  wants, document, least, num_slots, got = divided(
    size, min_length, max_length, slots
  )
  saw_bound = saw_tight = 0
  for row in range(len(wants)):
    opens, is_bound = id_by_id(
      wants[row], document[row], min_length, max_length, num_slots
    )
    is_valid = document[row] >= 0
    np.testing.assert_array_equal(got.is_start_BS[row], opens)
    np.testing.assert_array_equal(got.is_capacity_bound_BS[row], is_bound)
    np.testing.assert_array_equal(
      got.index_BS[row], np.where(is_valid, np.cumsum(opens) - 1, -1)
    )
    assert got.count_B[row] == opens.sum()
    if least[row] <= num_slots:
      assert got.index_BS[row].max() < num_slots
      saw_tight += least[row] == num_slots
    saw_bound += is_bound.any()
  if slots == 'tight' and min_length < max_length:
    assert saw_bound > 5
    assert saw_tight > 5
  if slots == 'plenty':
    assert saw_bound == 0


@on_rows
def test_starts_ends_offsets_and_counts_say_the_same(
  size, min_length, max_length, slots
):
  _, document, _, _, got = divided(size, min_length, max_length, slots)
  for row in range(len(document)):
    is_valid = document[row] >= 0
    index = got.index_BS[row]
    assert (index[~is_valid] == -1).all()
    assert not got.is_start_BS[row][~is_valid].any()
    assert not got.is_end_BS[row][~is_valid].any()
    assert (got.offset_BS[row][~is_valid] == 0).all()
    assert not got.is_capacity_bound_BS[row][~is_valid].any()
    numbers, lengths = np.unique(index[is_valid], return_counts=True)
    np.testing.assert_array_equal(numbers, np.arange(got.count_B[row]))
    assert (lengths <= max_length).all()
    for number in numbers:
      (here,) = np.nonzero(index == number)
      np.testing.assert_array_equal(here, np.arange(here[0], here[-1] + 1))
      np.testing.assert_array_equal(
        got.offset_BS[row][here], np.arange(len(here))
      )
      np.testing.assert_array_equal(got.is_start_BS[row][here], here == here[0])
      np.testing.assert_array_equal(got.is_end_BS[row][here], here == here[-1])
      assert len(set(document[row][here])) == 1
      is_last = here[-1] + 1 == size or (
        document[row][here[-1] + 1] != document[row][here[-1]]
      )
      assert len(here) >= min_length or is_last


def test_the_division_of_a_prefix_is_the_prefix_of_the_division():
  """Row n ends after n ids; slots do not bind."""
  rng = np.random.default_rng(0)
  size = 61
  for _ in range(5):
    wants, document = make_rows(rng, 1, size)
    document = np.where(document < 0, document.max(), document)
    is_prefix = np.arange(size) < np.arange(size + 1)[:, None]
    got = segment(
      np.repeat(wants, size + 1, axis=0),
      np.where(is_prefix, document, -1),
      2,
      7,
      size,
    )
    np.testing.assert_array_equal(
      got.index_BS, np.where(is_prefix, got.index_BS[-1], -1)
    )


def test_padding_and_its_wishes_change_nothing():
  rng = np.random.default_rng(0)
  wants, document = make_rows(rng, 50, 41)
  got = segment(wants, document, 2, 5, 12)
  longer = ((0, 0), (0, 9))
  other = segment(
    np.pad(np.where(document < 0, ~wants, wants), longer, constant_values=True),
    np.pad(document, longer, constant_values=-1),
    2,
    5,
    12,
  )
  for name, value in vars(got).items():
    if name == 'count_B':
      np.testing.assert_array_equal(other.count_B, value)
    else:
      np.testing.assert_array_equal(getattr(other, name)[:, :41], value)


def test_a_denied_wish_ends_wishes_for_good():
  """Three slots for 10 ids of at most 4: none is left to grant after two."""
  wants = np.array([[0, 1, 0, 0, 0, 0, 1, 0, 1, 0]], bool)
  got = segment(wants, np.zeros((1, 10)), 1, 4, 3)
  # A start at 1 would leave 9 ids to two slots of 4: denied, as all after.
  np.testing.assert_array_equal(got.index_BS, [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2]])
  np.testing.assert_array_equal(got.is_capacity_bound_BS[0], np.arange(10) >= 1)


def test_a_division_by_hand():
  wants = np.array([[1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1]], bool)
  document = np.array([[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, -1]])
  got = segment(wants, document, 2, 4, 9)
  # Too early at 1, granted at 3, four ids by 7, a document at 8, too early
  # at 9, granted at 10.
  np.testing.assert_array_equal(
    got.index_BS, [[0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 4, -1]]
  )


def test_first_slots_and_what_stands_at_the_first_id_of_a_segment():
  wants = np.array([[0, 0, 1, 0, 0, 1, 0, 0], [0] * 8], bool)
  document = np.array([[0, 0, 0, 1, 2, 2, 2, -1], [-1] * 8])
  got = segment(wants, document, 1, 4, 6)
  np.testing.assert_array_equal(
    got.index_BS, [[0, 0, 1, 2, 3, 4, 4, -1], [-1] * 8]
  )
  lowest = segmentation.first_slots(got, jnp.asarray(document))
  np.testing.assert_array_equal(lowest, [[0, 0, 0, 2, 3, 3, 3, 0], [0] * 8])
  x = jnp.arange(10, 18) * jnp.ones((2, 1), jnp.int32)
  np.testing.assert_array_equal(
    segmentation.per_slot(x, got, 6), [[10, 12, 13, 14, 15, 0], [0] * 6]
  )
  # Segments without a slot are left out.
  np.testing.assert_array_equal(
    segmentation.per_slot(x, got, 3), [[10, 12, 13], [0] * 3]
  )


def test_document_starts_are_the_first_ids():
  document = jnp.array([[0, 0, 1, 2, 2, -1], [-1] * 6, [3, 3, 3, 3, 3, 3]])
  np.testing.assert_array_equal(
    segmentation.document_starts(document),
    np.array([[1, 0, 1, 1, 0, 0], [0] * 6, [1, 0, 0, 0, 0, 0]], bool),
  )
