import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator import losses
from abstractinator.byte_vocab import BOS_ID, EOS_ID, NUM_BYTES, PAD_ID
from abstractinator.modules.expander import DecoderOnlyExpanderRVQ
from abstractinator.modules.expander_lanes import decode_segments
from abstractinator.types import Segments
from tests.implementations import XLA
from tests.jitted import jit

SIZE = 36
# Three documents of three, one, and four segments, then padding.
LENGTHS = ((5, 2, 6), (4,), (1, 6, 3, 3))
SLOTS = 11

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
LATENT = {
  'expander__attention__kv_dim': 6,
  'expander__attention__query_dim': 5,
  'expander__attention__retrieval_dim': 4,
}


@pytest.fixture(
  scope='module', params=WIRINGS, ids=lambda w: '-'.join(map(str, w))
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


def make_row():
  """One row: ids, documents and segments by hand, no model involved."""
  document = np.full(SIZE, -1, np.int32)
  index = np.full(SIZE, -1, np.int32)
  offset = np.zeros(SIZE, np.int32)
  position = slot = 0
  for number, lengths in enumerate(LENGTHS):
    for length in lengths:
      here = slice(position, position + length)
      document[here], index[here] = number, slot
      offset[here] = np.arange(length)
      position, slot = position + length, slot + 1
  is_start = (index >= 0) & (offset == 0)
  is_end = (index >= 0) & (index != np.append(index[1:], -1))
  ids = np.random.default_rng(0).integers(0, NUM_BYTES, SIZE)
  ids = np.where(index >= 0, ids, PAD_ID)
  for number in range(len(LENGTHS)):
    ids[np.nonzero(document == number)[0][-1]] = EOS_ID
  segments = Segments(
    index_BS=index,
    is_start_BS=is_start,
    is_end_BS=is_end,
    offset_BS=offset,
    count_B=np.int32(slot),
    is_capacity_bound_BS=np.zeros(SIZE, bool),
  )
  return ids.astype(np.int32), document, segments


def rows(x, count):
  return jnp.repeat(jnp.asarray(x)[None], count, axis=0)


def num_rows(level):
  return SLOTS * level.config.pooling.num_queries


def make_memory(level, seed=3):
  rng = np.random.default_rng(seed)
  shape = (num_rows(level), level.config.d_model)
  return rng.normal(size=shape).astype(np.float32)


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
  """[j, s]: the prediction of id s may read id j."""
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
  """[u, s]: the prediction of id s may read code u."""
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
  # What the ids within reach have read before the last self-attention.
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
  # Whether a segment ends at an id is said of the id itself too.
  np.testing.assert_array_equal(
    (ends != ends_changed)[:, real],
    (expected | np.eye(SIZE, dtype=bool))[:, real],
  )


def test_predictions_read_exactly_the_codes_they_may_see(level):
  """Row u of the batch has the vector of code u changed."""
  ids, _, segments = make_row()
  count, queries = num_rows(level), level.config.pooling.num_queries
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
  num_codes = queries * int(segments.count_B)
  for code in range(num_codes):
    first = np.argmax(got[code] & real)
    assert segments.index_BS[first] == code // queries
    assert segments.is_start_BS[first]
  assert not got[num_codes:, real].any()


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


def loop_decode(level, memory_BUD, document_BP):
  """Greedy decoding by teacher-forced calls over the ids decoded so far."""
  batch, slots = document_BP.shape
  longest = level.config.segmentation.max_length
  size = slots * longest
  index = np.arange(size) // longest
  offset = np.arange(size) % longest
  segments = Segments(
    index_BS=rows(index, batch),
    is_start_BS=rows(offset == 0, batch),
    is_end_BS=rows(offset == longest - 1, batch),
    offset_BS=rows(offset, batch),
    count_B=jnp.full((batch,), slots),
    is_capacity_bound_BS=jnp.zeros((batch, size), bool),
  )
  ids = np.zeros((batch, slots, longest), np.int32)
  length = np.zeros((batch, slots), np.int32)

  def predict():
    output = level.expand(
      level.variables,
      jnp.asarray(ids.reshape(batch, size)),
      jnp.asarray(np.repeat(document_BP, longest, axis=1)),
      segments,
      memory_BUD,
    )
    return (
      np.array(output.logits[0]).reshape(*ids.shape, -1),
      np.asarray(output.end_logits_BS).reshape(ids.shape),
      np.asarray(output.end_is_certain_BS).reshape(ids.shape),
    )

  for step in range(longest):
    logits, _, _ = predict()
    logits[..., [BOS_ID, PAD_ID]] = -np.inf
    ids[..., step] = np.argmax(logits[:, :, step], axis=-1)
    _, ends, is_certain = predict()
    is_end = (ends[..., step] > 0) | is_certain[..., step]
    length = np.where((length == 0) & is_end, step + 1, length)
  return ids, length


@pytest.mark.parametrize(
  ('lookback', 'queries'), [(0, 1), (2, 1), (0, 2), (1, 3)]
)
def test_decoding_at_once_equals_a_loop_of_teacher_forced_calls(
  tiny_level, lookback, queries
):
  level = tiny_level(
    expander__context='segment',
    expander__lookback=lookback,
    pooling__num_queries=queries,
  )
  rng = np.random.default_rng(5)
  memory = 2 * rng.normal(size=(2, num_rows(level), level.config.d_model))
  memory = memory.astype(np.float32)
  document = np.array(
    [[0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3], [0] * 6 + [1] * 5], np.int32
  )
  lowest = np.array(
    [[np.argmax(row == d) for d in row] for row in document], np.int32
  )
  ids, length = level.decode_segments(
    level.variables, jnp.asarray(memory), jnp.asarray(lowest)
  )
  want_ids, want_length = loop_decode(level, memory, document)
  np.testing.assert_array_equal(length, want_length)
  # Lengths differ, and so do ids: there was something to get wrong.
  assert len(set(np.ravel(length))) > 2
  assert len(set(np.ravel(ids))) > 10
  is_kept = np.arange(ids.shape[-1]) < np.asarray(length)[..., None]
  np.testing.assert_array_equal(
    np.where(is_kept, ids, -1), np.where(is_kept, want_ids, -1)
  )


def test_decoding_never_gives_bos_or_pad(tiny_level):
  """Heads that want nothing else still give bytes and EOS."""
  level = tiny_level()
  vocabulary = level.variables['params']['expander']['vocabulary']
  kernel = vocabulary['head']['kernel']
  wish = 1e3 * jnp.sign(jnp.sum(kernel, axis=1))
  eager = jnp.stack([wish, -wish], axis=1)
  params = dict(level.variables['params'])
  kernel = kernel.at[:, jnp.array([BOS_ID, PAD_ID])].set(eager)
  params['expander'] = params['expander'] | {
    'vocabulary': vocabulary | {'head': {'kernel': kernel}}
  }
  memory = np.stack([make_memory(level, seed) for seed in range(2)])
  ids, _ = level.decode_segments(
    level.variables | {'params': params},
    jnp.asarray(memory),
    jnp.zeros((2, SLOTS), jnp.int32),
  )
  assert not np.isin(ids, [BOS_ID, PAD_ID]).any()


def test_codes_decode_as_their_vectors_do(tiny_level):
  level = tiny_level()
  codes = jnp.arange(SLOTS)[None] % level.config.quantizer.codebook_size
  vectors = level.model.apply(
    level.variables, codes, method=lambda m, c: m.compressor.quantizer.lookup(c)
  )
  lowest = jnp.zeros((1, SLOTS), jnp.int32)
  decode = jit(level.model.apply, method='decode', sequence_length=9)
  is_valid = jnp.arange(SLOTS)[None] < SLOTS - 2
  ids, length = decode(level.variables, codes, is_valid, lowest)
  want_ids, want_length = level.decode_segments(
    level.variables, vectors, lowest
  )
  np.testing.assert_array_equal(length, jnp.where(is_valid, want_length, 0))
  is_kept = np.arange(ids.shape[-1]) < np.asarray(length)[..., None]
  np.testing.assert_array_equal(
    np.where(is_kept, ids, -1), np.where(is_kept, want_ids, -1)
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
  assert float(losses.terms(output, batch)['end']) == 0.0


def test_digits_of_given_codebooks_are_predicted_and_decoded(tiny_config):
  """As of a level above: ids of two digits, entries of another's codebooks."""
  config = tiny_config(expander__code_dim=6)
  expander = DecoderOnlyExpanderRVQ(
    config, (7, 5), XLA, jnp.float32, has_tables=False
  )
  rng = np.random.default_rng(0)
  codebooks = tuple(
    jnp.asarray(rng.normal(size=(size, 6)), jnp.float32) for size in (7, 5)
  )
  ids, document, segments = make_row()
  ids = np.where(ids < NUM_BYTES, ids % 35, ids - NUM_BYTES + 35)
  args = (
    rows(ids, 1),
    rows(document, 1),
    Segments(**{k: rows(v, 1) for k, v in vars(segments).items()}),
    rng.normal(size=(1, SLOTS, config.d_model)).astype(np.float32),
    None,
    codebooks,
  )
  output, variables = jit(expander.init_with_output)(jax.random.key(0), *args)
  assert [x.shape[-1] for x in output.logits] == [10, 5]
  assert set(variables['params']['vocabulary']) == {
    'kernel',
    'log_scale',
    'special',
  }
  real = document >= 0
  uniform = np.log(10) + np.log(5) * np.mean(ids[real] < 35)
  assert abs(float(output.nats_BS[0, real].mean()) - uniform) < 0.5
  decode = nn.apply(
    lambda m: decode_segments(
      m,
      args[3],
      jnp.ones((1, SLOTS), bool),
      jnp.zeros((1, SLOTS), jnp.int32),
      codebooks,
    ),
    expander,
  )
  decoded, _ = jit(decode)(variables)
  assert 0 <= int(decoded.min()) <= int(decoded.max()) <= 36
