import fractions
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import segmentation, segmentation_stream
from abstractinator.ops import segmentation_rules as rules
from abstractinator.ops.segmentation_rules import Policy

# Rule, threshold, min_length, max_length.
POLICIES = [
  ('entropy_delta', 0.3, 1, 16),
  ('entropy_delta', -0.2, 3, 5),
  ('entropy_threshold', 3.2, 1, 16),
  ('entropy_threshold', 1.5, 2, 7),
  ('equal_information', 14.0, 1, 16),
  ('equal_information', 5.5, 2, 6),
  ('equal_information', 100.0, 1, 9),
  ('stride', 4.5, 1, 16),
  ('stride', 3.0, 1, 16),
  ('stride', 1.0, 1, 4),
  ('stride', 2.3, 2, 5),
  ('space', 0.0, 1, 16),
  ('space', 1.6, 1, 16),
  ('space', -9.7, 2, 16),
  ('space', -2.25, 2, 6),
]
# Tests share one shape: each shape costs a compilation.
ROWS, SIZE = 1000, 133
TEXT = 'Of the 3 bytes—café, naïve: "日本" … ok?\n\n  def f(x):\n    pass'


def policy_of(name, threshold, min_length, max_length):
  return Policy(jnp.float32(threshold), name, min_length, max_length)


@functools.cache
def whole_rows(name, min_length, max_length):
  def divide(threshold, ids, document, entropy, surprisal):
    known = segmentation.known_before(ids, document, entropy, surprisal)
    policy = Policy(threshold, name, min_length, max_length)
    return segmentation.segment(
      rules.wishes(known, policy),
      document,
      min_length=min_length,
      max_length=max_length,
      num_slots=ids.shape[1],
    )

  return jax.jit(divide)


@functools.cache
def id_by_id(name, min_length, max_length):
  """Returns the stream, compiled apart from whole rows, run over their ids."""

  def run(threshold, ids, document, entropy, surprisal):
    policy = Policy(threshold, name, min_length, max_length)

    def follow(state, at):
      entropy_B, document_B, last_id_B, last_surprisal_B = at
      return segmentation_stream.step(
        state,
        policy,
        entropy_bits_B=entropy_B,
        document_B=document_B,
        last_id_B=last_id_B,
        last_surprisal_bits_B=last_surprisal_B,
      )

    # The id before the first one of a document is arbitrary.
    def behind(x):
      return jnp.roll(x, 1, axis=1)

    columns = (entropy, document, behind(ids), behind(surprisal))
    state = segmentation_stream.initial_state(ids.shape[0])
    state, is_start = jax.lax.scan(
      follow, state, jax.tree.map(lambda x: x.T, columns)
    )
    return is_start.T, state

  return jax.jit(run)


def make_rows(seed, rows, size):
  """Returns text-like ids and bits; documents from single ids to the row."""
  rng = np.random.default_rng(seed)
  pool = np.frombuffer((TEXT * 3).encode(), np.uint8)
  begin = rng.integers(0, len(pool), (rows, 1))
  ids = pool[(begin + np.arange(size)) % len(pool)].astype(np.int32)
  is_noise = rng.random((rows, size)) < 0.2
  ids = np.where(is_noise, rng.integers(0, 256, (rows, size)), ids)
  cuts = rng.random((rows, size)) < rng.choice([0, 0.03, 0.3], (rows, 1))
  document = np.cumsum(cuts, axis=1) - cuts[:, :1]
  real = rng.choice([0, 1, size // 2, size - 1, size], (rows, 1))
  document = np.where(np.arange(size) < real, document, -1)
  entropy = rng.gamma(4.0, 0.6, (rows, size))
  surprisal = rng.exponential(2.4, (rows, size))
  return (
    jnp.asarray(ids, jnp.int32),
    jnp.asarray(document, jnp.int32),
    jnp.asarray(entropy, jnp.float32),
    jnp.asarray(surprisal, jnp.float32),
  )


def is_space_like(byte):
  """Excludes ASCII letters and digits, and bytes of other characters."""
  return byte < 0x80 and not chr(byte).isalnum()


def bytes_left(before):
  """Returns how many bytes the last character lacks, and how many it has."""
  for size, byte in enumerate(before[::-1][:4], 1):
    if not 0x80 <= byte < 0xC0:
      whole = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
      return max(whole - size, 0), size if size == whole else 4
  return 0, 4


def rounded(x):
  return fractions.Fraction(round(float(np.float32(x)) * 4096), 4096)


def in_words(name, threshold, min_length, max_length, row):
  """Follows the docstrings of the rules id by id, in exact arithmetic.

  Sums are of numbers rounded to multiples of 2^-12.
  """
  ids, document, entropy, surprisal = (np.asarray(x) for x in row)
  if name in ('equal_information', 'space'):
    threshold = rounded(threshold)
  threshold = fractions.Fraction(float(np.float32(threshold)))
  starts = []
  begin = length = 0
  for s in range(int((document >= 0).sum())):
    is_first = s == 0 or document[s] != document[s - 1]
    if is_first:
      begin = s
    at = s - begin
    if is_first or length == max_length:
      wants = True
    elif name == 'entropy_delta':
      wants = entropy[s] - entropy[s - 1] > np.float32(threshold)
    elif name == 'entropy_threshold':
      wants = entropy[s] > np.float32(threshold)
    elif name == 'equal_information':
      spent = sum(rounded(x) for x in surprisal[s - length : s])
      wants = spent + rounded(entropy[s]) > threshold
    elif name == 'stride':
      wants = at == math.ceil(math.floor(at / threshold) * threshold)
    else:
      is_word = is_space_like(ids[s - 1]) and not (
        at >= 2 and is_space_like(ids[s - 2])
      )
      fraction = fractions.Fraction(at * 2654435769 % 2**32 >> 20, 4096)
      limit = min_length if is_word else max_length
      wants = length + fraction >= limit + threshold
      left, size = bytes_left(ids[begin:s].tolist())
      if ids[s - 1] >= 0x80:
        wants = not left and (wants or length + size > max_length)
    is_start = (
      is_first or length == max_length or (wants and length >= min_length)
    )
    starts.append(is_start)
    length = 1 if is_start else length + 1
  return starts


# Rules and lengths that are above as well, at another threshold.
AT_NIGHT = [POLICIES[i] for i in (6, 8, 12, 14)]


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(policy, marks=[pytest.mark.nightly] * (policy in AT_NIGHT))
    for policy in POLICIES
  ],
  ids=str,
)
def setting(request):
  """Runs all tests on a setting before the next, which compiles anew."""
  return request.param


def test_rules_divide_as_their_docstrings_say(setting):
  name, threshold, min_length, max_length = setting
  rows = make_rows(1, ROWS, SIZE)
  got = whole_rows(name, min_length, max_length)(
    jnp.float32(threshold), *rows
  ).is_start_BS
  for i in range(40):
    want = in_words(*setting, [x[i] for x in rows])
    np.testing.assert_array_equal(got[i][: len(want)], want)
    assert not got[i][len(want) :].any()


def test_ids_one_at_a_time_are_divided_as_whole_rows(setting):
  """1000 rows, ended at random places, and documents that end inside."""
  name, threshold, min_length, max_length = setting
  rows = make_rows(2, ROWS, SIZE)
  cut = np.random.default_rng(3).integers(0, SIZE + 1, (ROWS, 1))
  document = jnp.where(np.arange(SIZE) < cut, rows[1], -1)
  rows = (rows[0], document, *rows[2:])
  whole = whole_rows(name, min_length, max_length)(
    jnp.float32(threshold), *rows
  )
  stream, state = id_by_id(name, min_length, max_length)(
    jnp.float32(threshold), *rows
  )
  np.testing.assert_array_equal(stream, whole.is_start_BS)
  assert 0.02 < float(jnp.mean(stream)) < 0.9
  known = segmentation.known_before(*rows)
  after = segmentation_stream.state_after(
    known, rules.wishes(known, policy_of(*setting)), whole, document
  )
  for field, want in vars(state).items():
    got = getattr(after, field)
    least = {'second_last_id_B': 2, 'third_last_id_B': 3}.get(field, 0)
    # Ids before the first one of a document are arbitrary.
    got, want = (
      jnp.where(state.position_B >= least, x, 0) for x in (got, want)
    )
    np.testing.assert_array_equal(got, want, field)


def test_later_ids_and_their_bits_change_no_earlier_boundary(setting):
  """Row n has the first n ids of the last row, and then other ids."""
  name, threshold, min_length, max_length = setting
  row, other = make_rows(4, 1, SIZE), make_rows(5, ROWS, SIZE)
  document = jnp.zeros((ROWS, SIZE), jnp.int32)
  is_prefix = np.arange(SIZE) < np.arange(ROWS)[:, None]
  ids, surprisal = (jnp.where(is_prefix, row[k], other[k]) for k in (0, 3))
  # The entropy of an id is known before it.
  is_known = np.arange(SIZE) <= np.arange(ROWS)[:, None]
  entropy = jnp.where(is_known, row[2], other[2])
  divided = whole_rows(name, min_length, max_length)(
    jnp.float32(threshold), ids, document, entropy, surprisal
  ).is_start_BS
  np.testing.assert_array_equal(
    np.where(is_known, divided, False), np.where(is_known, divided[-1], False)
  )


def test_a_row_without_an_id_waits():
  """Rows of a stream move at their own pace."""
  rows = make_rows(6, 2, 30)
  rows = (rows[0], jnp.zeros((2, 30), jnp.int32), *rows[2:])
  policy = policy_of('equal_information', 9.0, 1, 8)
  want = whole_rows('equal_information', 1, 8)(policy.threshold, *rows)
  state = segmentation_stream.initial_state(2)
  rng = np.random.default_rng(0)
  at = np.zeros(2, int)
  got = np.zeros((2, 30), bool)
  while at.min() < 30:
    is_active = (rng.random(2) < 0.5) & (at < 30)
    now = np.minimum(at, 29)
    pick = [np.asarray(x)[np.arange(2), now] for x in rows]
    last = [np.asarray(x)[np.arange(2), np.maximum(now - 1, 0)] for x in rows]
    state, is_start = segmentation_stream.step(
      state,
      policy,
      entropy_bits_B=jnp.asarray(pick[2]),
      document_B=jnp.where(is_active, 0, -1),
      last_id_B=jnp.asarray(last[0]),
      last_surprisal_bits_B=jnp.asarray(last[3]),
    )
    assert not np.asarray(is_start)[~is_active].any()
    got[np.arange(2)[is_active], at[is_active]] = is_start[is_active]
    at += is_active
  np.testing.assert_array_equal(got, want.is_start_BS)


def test_words_are_those_of_spacebyte():
  """A word ends with the first of the bytes that end it; the rest follow.

  Characters of several bytes are parts of words.
  """
  ids = np.frombuffer(TEXT.encode(), np.uint8)[None].astype(np.int32)
  zeros = jnp.zeros(ids.shape)
  got = whole_rows('space', 1, 99)(
    jnp.float32(0.0), jnp.asarray(ids), jnp.zeros_like(ids), zeros, zeros
  )
  text = TEXT.encode()
  (starts,) = np.nonzero(np.asarray(got.is_start_BS[0]))
  parts = [
    text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)
  ]
  assert [part.decode() for part in parts] == [
    *('Of ', 'the ', '3 ', 'bytes—café,', ' naïve:', ' "日本"', ' … '),
    *('ok?', '\n\n  def ', 'f(', 'x)', ':\n    pass'),
  ]


@pytest.mark.parametrize('threshold', [0.0, 2.5, -3.5])
@pytest.mark.parametrize(
  'text',
  ['日本語のテキスト' * 4, 'ёжик в тумане' * 4, '😀é日' * 9, 'né😀 ' * 9],
)
def test_no_segment_begins_within_a_character(text, threshold):
  ids = np.zeros((1, SIZE), np.int32)
  data = text.encode()
  ids[0, : len(data)] = np.frombuffer(data, np.uint8)
  zeros = jnp.zeros((1, SIZE))
  document = jnp.where(np.arange(SIZE) < len(data), 0, -1)[None]
  got = whole_rows('space', 1, 16)(
    jnp.float32(threshold), jnp.asarray(ids), document, zeros, zeros
  )
  starts = np.flatnonzero(np.asarray(got.is_start_BS[0]))
  bounds = [*starts.tolist(), len(data)]
  for a, b in itertools.pairwise(bounds):
    data[a:b].decode()  # Raises at half a character.
  assert len(starts) >= len(data) / 16


def test_space_like_bytes():
  got = rules.is_space(jnp.arange(256))
  np.testing.assert_array_equal(got, [is_space_like(b) for b in range(256)])


@pytest.mark.parametrize('stride', [1.0, 3.0, 4.0, 4.5, 7.3, 12.0])
def test_strides_keep_their_length_over_long_documents(stride):
  position = jnp.arange(200_000)
  known = rules.Known(*[jnp.zeros(200_000)] * 6, position=position)
  wish = rules.wishes(known, policy_of('stride', stride, 1, 16))
  (starts,) = np.nonzero(np.asarray(wish.need) == 0)
  lengths = np.diff(starts)
  assert set(lengths) == {math.floor(stride), math.ceil(stride)}
  np.testing.assert_allclose(lengths.mean(), stride, rtol=1e-5)
