import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import dictionary
from abstractinator.types import Segments

LONGEST = 5
find = jax.jit(dictionary.find)


def drawn(rng, count, num_ids):
  """Returns segments of few ids, so that many share their beginnings."""
  lengths = rng.integers(1, LONGEST + 1, count)
  return [tuple(rng.integers(0, num_ids, n).tolist()) for n in lengths]


def padded(segments):
  rows = np.full((len(segments), LONGEST), -1, np.int32)
  for row, ids in zip(rows, segments, strict=True):
    row[: len(ids)] = ids
  return rows


@pytest.mark.parametrize('num_rows', [1, 2, 7, 8, 100])
@pytest.mark.parametrize('num_ids', [2, 300])
def test_codes_are_those_of_a_python_dictionary(num_rows, num_ids):
  rng = np.random.default_rng(num_rows)
  segments = drawn(rng, 4 * num_rows, num_ids)
  # Fewer segments than rows: some have none.
  known = sorted(set(segments))[: max(num_rows - 2, 1)]
  table = dictionary.table_of(known[::-1], num_rows, LONGEST)
  code_of = {ids: code for code, ids in enumerate(known)}
  asked = segments + drawn(rng, 200, num_ids)
  want = [code_of.get(ids, num_rows) for ids in asked]
  got = find(table, jnp.asarray(padded(asked)))
  assert got.tolist() == want
  assert len(set(want)) > 1
  spelled = dictionary.spell(jnp.asarray(table), got)
  assert (spelled[:, -1] == -1).all()
  known_N = np.asarray(got) < num_rows
  np.testing.assert_array_equal(
    np.asarray(spelled)[:, :-1],
    np.where(known_N[:, None], padded(asked), -1),
  )


def test_a_code_without_a_segment_spells_nothing():
  table = dictionary.table_of([(7, 8)], 3, LONGEST)
  spelled = dictionary.spell(jnp.asarray(table), jnp.arange(4))
  assert spelled[0].tolist() == [7, 8, -1, -1, -1, -1]
  assert (spelled[1:] == -1).all()
  empty = dictionary.empty_table(3, LONGEST)
  assert find(empty, padded([(7,), (0,)])).tolist() == [3, 3]


def test_codes_open_with_the_id_that_the_entropy_model_predicts():
  rng = np.random.default_rng(2)
  known = [(0, 1), (0, 2, 3), (4,), (3, 3)]
  table = jnp.asarray(dictionary.table_of(known, 5, LONGEST))
  logits = rng.normal(size=(2, 3, 6)).astype(np.float32)
  got = jax.jit(dictionary.first_id_logits)(table, logits)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  for code, ids in enumerate(sorted(known)):
    np.testing.assert_allclose(got[..., code], log_p[..., ids[0]], atol=1e-6)
  # A row without a segment, then the escape.
  assert (got[..., 4] < -20).all()
  assert (got[..., 5] == 0).all()


INDEX = np.array([[0, 0, 0, 1, 2, 2, -1], [0, 1, 1, 1, 1, 1, 2]])


@functools.cache
def divided():
  """Two rows; the last segment of the second one has no slot."""
  offset = np.array([[0, 1, 2, 0, 0, 1, 0], [0, 0, 1, 2, 3, 4, 0]])
  return Segments(
    jnp.asarray(INDEX), *[None] * 2, jnp.asarray(offset), *[None] * 2
  )


def test_ids_go_to_their_segments():
  ids = jnp.arange(14).reshape(2, 7)
  got = dictionary.segment_ids(ids, divided(), 2, LONGEST)
  want = [[(0, 1, 2), (3,)], [(7,), (8, 9, 10, 11, 12)]]
  np.testing.assert_array_equal(got, [padded(row) for row in want])
  more = dictionary.segment_ids(ids, divided(), 4, LONGEST)
  np.testing.assert_array_equal(more[:, :2], got)
  assert more[:, 2:, 0].tolist() == [[4, -1], [13, -1]]


def test_spelled_ids_are_certain_and_others_stay():
  table = jnp.asarray(dictionary.table_of([(1, 2, 3), (4,)], 2, LONGEST))
  codes = jnp.array([[0, 1], [2, 0]])
  spelling = dictionary.spelling(
    dictionary.spell(table, codes), divided().index_BS, divided().offset_BS
  )
  # Segments without a slot are open, and so are ids behind a code's segment.
  assert spelling.ids.tolist() == [
    [1, 2, 3, 4, -1, -1, -1],
    [-1, 1, 2, 3, -1, -1, -1],
  ]
  given = np.asarray(spelling.is_given)
  assert spelling.is_end[given].tolist() == [
    False,
    False,
    True,
    True,
    *[False] * 2,
    True,
  ]
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6)))
  got = np.asarray(spelling.logits(logits))
  np.testing.assert_array_equal(got[~given], logits[~given])
  p = np.asarray(jax.nn.softmax(spelling.logits(logits.astype(np.float32))))
  right = np.take_along_axis(p, np.asarray(spelling.ids)[..., None], -1)[..., 0]
  assert (right[given] == 1).all()
  ends = jnp.zeros((2, 7))
  got = np.asarray(spelling.end_logits(ends))
  assert (got[~given] == 0).all()
  assert ((got > 20) == np.asarray(spelling.is_end))[given].all()
  assert (np.abs(got[given]) > 20).all()
  says = np.asarray(spelling.ends(jnp.ones((2, 7), bool)))
  assert says[~given].all()
  np.testing.assert_array_equal(says[given], spelling.is_end[given])
