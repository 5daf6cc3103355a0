"""Predictions of an expander: the ids and codes they read, and the ends."""

import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.objective import losses
from abstractinator.types import EOS_ID, NUM_BYTES, PAD_ID, Segments
from tests.helpers.tiny_segments import (
  SIZE,
  SLOTS,
  make_memory,
  make_row,
  num_codes,
  rows,
)

# Context, lookback, form of attention, codes of a segment.
WIRINGS = [
  ('segment', 0, 'regular', 1),
  ('segment', 2, 'regular', 1),
  ('window', 0, 'regular', 1),
  ('window', 2, 'regular', 1),
  ('full', 0, 'regular', 1),
  ('full', 2, 'regular', 1),
  ('segment', 2, 'mla', 1),
  ('segment', 0, 'regular', 2),
  ('window', 1, 'mla', 3),
]
# Each context, form, lookback and number of codes runs every time.
ALWAYS = [
  ('full', 2, 'regular', 1),
  ('segment', 0, 'regular', 2),
  ('window', 1, 'mla', 3),
]
LATENT = {
  'expander__attention__kv_dim': 6,
  'expander__attention__query_dim': 5,
  'expander__attention__retrieval_dim': 4,
}


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(w, marks=[pytest.mark.nightly] * (w not in ALWAYS))
    for w in WIRINGS
  ],
  ids=lambda w: '-'.join(map(str, w)),
)
def level(request, tiny_level):
  context, lookback, form, queries = request.param
  return tiny_level(
    expander__context=context,
    expander__lookback=lookback,
    expander__attention__form=form,
    pooling__num_queries=queries,
    **(LATENT if form == 'mla' else {}),
  )


def expand(level, ids_BS, memory_BUD):
  _, document, segments = make_row()
  count = len(ids_BS)
  # One batch size, one compilation: rows of no interest fill it up.
  fill = SIZE - count
  output = level.expand(
    level.variables,
    jnp.concatenate([jnp.asarray(ids_BS), rows(ids_BS[0], fill)]),
    rows(document, SIZE),
    Segments(**{k: rows(v, SIZE) for k, v in vars(segments).items()}),
    jnp.concatenate([jnp.asarray(memory_BUD), rows(memory_BUD[0], fill)]),
  )
  return (
    np.asarray(output.logits[0][:count]),
    np.asarray(output.end_logits_BS[:count]),
  )


def sees_ids(level):
  """Returns [j, s], True if the prediction of id s may read id j."""
  _, document, segments = make_row()
  c = level.config.expander
  j, s = np.arange(SIZE)[:, None], np.arange(SIZE)[None, :]
  if c.context == 'segment':
    group, reach = segments.index_BS, SIZE
  else:
    reach = SIZE if c.context == 'full' else 1 + c.num_layers * c.window
    group = document
  return (
    (j < s)
    & (s <= j + reach)
    & (group[:, None] == group[None, :])
    & (group[None, :] >= 0)
  )


def sees_codes(level):
  """Returns [u, s], True if the prediction of id s may read code u."""
  _, document, segments = make_row()
  c = level.config.expander
  index = segments.index_BS
  lowest = np.array(
    [index[document == d].min() if d >= 0 else SLOTS for d in document]
  )
  p = np.repeat(np.arange(SLOTS), level.config.pooling.num_queries)[:, None]
  direct = (p <= index) & (p >= index - c.lookback) & (p >= lowest)
  if c.context == 'segment':
    return direct
  # Codes that the ids within reach have read before the last self-attention.
  reach = SIZE if c.context == 'full' else (c.num_layers - 1) * c.window
  seen = direct.copy()
  for s in range(SIZE):
    for t in range(max(0, s - reach), s):
      if document[t] == document[s] and document[s] >= 0:
        seen[:, s] |= direct[:, t]
  return seen


def test_predictions_read_exactly_the_ids_before_in_their_context(level):
  """Row j of the batch has id j changed."""
  ids, _, segments = make_row()
  memory = rows(make_memory(level), SIZE)
  changed = (
    rows(ids, SIZE)
    .at[jnp.arange(SIZE), jnp.arange(SIZE)]
    .set((ids + 7) % NUM_BYTES)
  )
  logits, ends = expand(level, rows(ids, SIZE), memory)
  logits_changed, ends_changed = expand(level, changed, memory)
  real = segments.index_BS >= 0
  expected = sees_ids(level)
  assert expected.any(axis=1).sum() > 15
  np.testing.assert_array_equal(
    np.any(logits != logits_changed, axis=-1)[:, real], expected[:, real]
  )
  # The head of ends reads the id itself, too.
  np.testing.assert_array_equal(
    (ends != ends_changed)[:, real],
    (expected | np.eye(SIZE, dtype=bool))[:, real],
  )


def test_predictions_read_exactly_the_codes_they_may_see(level):
  """Row u of the batch has the vector of code u changed."""
  ids, _, segments = make_row()
  count, queries = num_codes(level), level.config.pooling.num_queries
  memory = rows(make_memory(level), count)
  changed = memory.at[jnp.arange(count), jnp.arange(count)].add(1.0)
  logits, ends = expand(level, rows(ids, count), memory)
  logits_changed, ends_changed = expand(level, rows(ids, count), changed)
  real = segments.index_BS >= 0
  expected = sees_codes(level)
  got = np.any(logits != logits_changed, axis=-1)
  np.testing.assert_array_equal(got[:, real], expected[:, real])
  np.testing.assert_array_equal(
    (ends != ends_changed)[:, real], expected[:, real]
  )
  used = queries * int(segments.count_B)
  for code in range(used):
    first = np.argmax(got[code] & real)
    assert segments.index_BS[first] == code // queries
    assert segments.is_start_BS[first]
  assert not got[used:, real].any()


def test_a_code_moves_the_prediction_of_its_first_id_by_much(level):
  ids, _, segments = make_row()
  queries = level.config.pooling.num_queries
  memory = rows(make_memory(level), SLOTS)
  own = np.arange(SLOTS)[:, None] == np.repeat(np.arange(SLOTS), queries)
  changed = memory * np.where(own, -1.0, 1.0)[..., None]
  difference = np.max(
    np.abs(
      expand(level, rows(ids, SLOTS), changed)[0]
      - expand(level, rows(ids, SLOTS), memory)[0]
    ),
    axis=-1,
  )
  for s in np.nonzero(segments.is_start_BS)[0]:
    assert difference[segments.index_BS[s], s] > 0.05


def test_certain_ends_are_eos_and_the_longest_segments(level):
  ids, document, segments = make_row()
  output = level.expand(
    level.variables,
    rows(ids, SIZE),
    rows(document, SIZE),
    Segments(**{k: rows(v, SIZE) for k, v in vars(segments).items()}),
    rows(make_memory(level), SIZE),
  )
  longest = level.config.segmentation.max_length
  np.testing.assert_array_equal(
    output.end_is_certain_BS[0],
    (ids == EOS_ID) | (segments.offset_BS == longest - 1),
  )


def test_a_document_is_predicted_alike_wherever_it_lies(level):
  """The third document alone in a row, its segments in the first slots."""
  ids, document, segments = make_row()
  memory = make_memory(level)
  first = int(segments.index_BS[document == 2].min())
  here = np.nonzero(document == 2)[0]
  shift = int(here[0])

  def moved(x, fill):
    return np.concatenate([x[here], np.full(SIZE - len(here), fill, x.dtype)])

  alone = Segments(
    index_BS=np.maximum(moved(segments.index_BS, -1) - first, -1),
    is_start_BS=moved(segments.is_start_BS, False),
    is_end_BS=moved(segments.is_end_BS, False),
    offset_BS=moved(segments.offset_BS, 0),
    count_B=segments.count_B - first,
    is_capacity_bound_BS=segments.is_capacity_bound_BS,
  )
  outputs = [
    level.expand(
      level.variables,
      rows(i, SIZE),
      rows(d, SIZE),
      Segments(**{k: rows(v, SIZE) for k, v in vars(s).items()}),
      rows(m, SIZE),
    )
    for i, d, s, m in (
      (ids, document, segments, memory),
      (
        moved(ids, PAD_ID),
        np.minimum(moved(document, -1), 0),
        alone,
        np.roll(memory, -first * level.config.pooling.num_queries, axis=0),
      ),
    )
  ]
  for name in ('nats_BS', 'end_logits_BS'):
    together, apart = (getattr(output, name)[0] for output in outputs)
    np.testing.assert_allclose(
      apart[: len(here)], together[shift : shift + len(here)], atol=2e-5
    )


def test_ends_of_the_entropy_model_need_no_head_and_cost_nothing(
  tiny_level, make_batch
):
  level = tiny_level(expander__ends='entropy')
  names = set(level.variables['params']['expander'])
  assert names == set(tiny_level().variables['params']['expander']) - {
    'end_hidden',
    'end_head',
  }
  batch = make_batch([[20, 4]], 24)
  output = level.call(level.variables, batch)
  assert output.expanded.end_logits_BS is None
  assert float(losses.level_terms(output, batch)['end']) == 0.0
