import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.evaluation.reconstruction import free_running_counts
from abstractinator.ops import segmentation
from abstractinator.ops.segmentation_rules import Wishes
from abstractinator.types import EOS_ID, PAD_ID
from tests.helpers.jitted import jit

MAX_LENGTH = 4
SIZE, SLOTS = 20, 10


@jit
def divided(ids_BS, wants_BS):
  """Segments of rows that are a document each, ended by EOS."""
  document_BS = jnp.where(ids_BS == PAD_ID, -1, 0)
  return segmentation.segment(
    Wishes.at(wants_BS),
    document_BS,
    min_length=1,
    max_length=MAX_LENGTH,
    num_slots=SLOTS,
  )


@jit
def counts_of_a_level(decoded, lengths, ids_BS, segments, is_valid_BP):
  """Where the first level is the top."""
  origin_BP = np.broadcast_to(np.arange(SLOTS), lengths.shape)
  lengths = jnp.where(is_valid_BP, lengths, 0)
  return free_running_counts(
    decoded, lengths, origin_BP, ids_BS, segments.index_BS, is_valid_BP
  )


def plain_counts(decoded, lengths, ids_BS, segments, is_valid_BP):
  """The same in Python: lists of bytes, segment by segment."""
  right = total = 0
  for row, slot in zip(*np.nonzero(is_valid_BP), strict=True):
    at = np.asarray(segments.index_BS)[row] == slot
    truth = [i for i in ids_BS[row][at] if i < 256]
    guess = [i for i in decoded[row, slot][: lengths[row, slot]] if i < 256]
    right += sum(a == b for a, b in zip(truth, guess, strict=False))
    total += max(len(truth), len(guess))
  return right, total


@pytest.mark.parametrize('seed', range(5))
def test_counts_match_plain_python(seed):
  rng = np.random.default_rng(seed)
  # Few values, so that chance hits are common; EOS in wrong places too.
  ids_BS = rng.integers(0, 3, (3, SIZE)).astype(np.int32)
  for row, end in enumerate((SIZE - 1, 7, 12)):
    ids_BS[row, end] = EOS_ID
    ids_BS[row, end + 1 :] = PAD_ID
  segments = divided(ids_BS, rng.random((3, SIZE)) < 0.4)
  shape = (3, SLOTS, MAX_LENGTH)
  decoded = rng.choice([0, 1, 2, EOS_ID], shape).astype(np.int32)
  # EOS ends a segment, as in `decode`.
  is_eos = decoded == EOS_ID
  lengths = np.where(
    is_eos.any(-1),
    is_eos.argmax(-1) + 1,
    rng.integers(1, MAX_LENGTH + 1, shape[:2]),
  )
  is_valid_BP = np.arange(SLOTS) < np.asarray(segments.count_B)[:, None]
  is_valid_BP[0, 2] = False
  args = (decoded, lengths, ids_BS, segments, is_valid_BP)
  counted = counts_of_a_level(*args)
  assert tuple(map(int, counted)) == plain_counts(*args)


def one_row(truth, guess, is_start):
  """Counts for a row of one segment after each start, all decoded `guess`."""
  ids_BS = np.array([truth], np.int32)
  segments = divided(ids_BS, np.array([is_start]))
  decoded = np.full((1, SLOTS, MAX_LENGTH), 9, np.int32)
  lengths = np.ones((1, SLOTS), np.int32)
  for slot, ids in enumerate(guess):
    decoded[0, slot, : len(ids)] = ids
    lengths[0, slot] = len(ids)
  is_valid_BP = np.arange(SLOTS) < np.asarray(segments.count_B)[:, None]
  counted = counts_of_a_level(decoded, lengths, ids_BS, segments, is_valid_BP)
  return tuple(map(int, counted))


@pytest.mark.parametrize(
  ('guess', 'expected'),
  [
    ([[1, 2], [3, 4, EOS_ID]], (4, 4)),
    # EOS forgotten: nothing lost but nothing to gain from it either.
    ([[1, 2], [3, 4]], (4, 4)),
    # Too long and too short cost one each, in their own segment only.
    ([[1, 2, 2], [3, 4, EOS_ID]], (4, 5)),
    ([[1], [3, 4, EOS_ID]], (3, 4)),
    # A wrong EOS at the place of the true one does not count as right.
    ([[1, EOS_ID], [3, 4, EOS_ID]], (3, 4)),
    # What lies past the length is meaningless.
    ([[5], [9, 9, 9, 9]], (0, 6)),
  ],
)
def test_counts_by_hand(guess, expected):
  truth = [1, 2, 3, 4, EOS_ID]
  counted = one_row(truth, guess, [True, False, True, False, False])
  assert counted == expected


def test_bytes_of_a_top_segment_count_wherever_they_were_decoded():
  """Two top segments, of bytes [1 2 3] and [4 5 EOS]."""
  ids_BS = np.array([[1, 2, 3, 4, 5, EOS_ID, PAD_ID]], np.int32)
  top_BS = np.array([[0, 0, 0, 1, 1, 1, -1]], np.int32)
  # The first came down as [1 | 2 3 9], too long; the second as [4 6 EOS].
  decoded = np.full((1, SLOTS, MAX_LENGTH), 7, np.int32)
  for slot, ids in enumerate(([1], [2, 3, 9], [4, 6, EOS_ID])):
    decoded[0, slot, : len(ids)] = ids
  lengths = np.array([[1, 3, 3] + [0] * (SLOTS - 3)], np.int32)
  origin = np.array([[0, 0, 1] + [0] * (SLOTS - 3)], np.int32)
  is_valid = np.array([[True, True, False]])
  args = (decoded, lengths, origin, ids_BS, top_BS)
  assert tuple(map(int, free_running_counts(*args, is_valid))) == (4, 6)
  is_valid[0, 1] = False
  assert tuple(map(int, free_running_counts(*args, is_valid))) == (3, 4)
