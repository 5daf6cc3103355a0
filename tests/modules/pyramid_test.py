import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator import pyramid_losses
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.evaluation.reconstruction import top_slots
from abstractinator.modules.abstractinator import Abstractinator, advance
from abstractinator.types import Batch, Special
from tests import tiny_pyramid
from tests.implementations import XLA
from tests.jitted import jit, jit_to_numpy

SIZE = 40
TWO = tiny_pyramid.make_config({}, {'d_model': 20})
# Of codes with several digits, several codes of a segment, and no codebook.
FORMS = {
  'vq': TWO,
  'rvq': tiny_pyramid.make_config(
    {
      'quantizer.kind': 'rvq',
      'quantizer.codebook_size': 5,
      'pooling.num_queries': 2,
    },
    {'expander.lookback': 1},
  ),
  'fsq': tiny_pyramid.make_config(
    {'quantizer.kind': 'fsq', 'quantizer.levels': (4, 3)}, {}
  ),
}


# Levels on levels; what codes of `fsq` cost is tested always.
kinds = pytest.mark.parametrize(
  'kind', ['vq', 'rvq', pytest.param('fsq', marks=pytest.mark.nightly)]
)


class Pyramid:
  """A pyramid and its methods, each compiled once."""

  def __init__(self, config, edit=lambda path, x: x):
    self.config = config
    self.model = tiny_pyramid.make_model(config)
    self.variables = jax.tree_util.tree_map_with_path(
      edit, tiny_pyramid.make_variables(config)
    )
    apply = functools.partial(self.model.apply, self.variables)
    self.call = jit_to_numpy(apply)
    self.expand = [
      jit_to_numpy(apply, method=functools.partial(expand, number=number))
      for number in range(len(config.levels))
    ]
    self.decode = jit_to_numpy(
      lambda *args: apply(*args, SIZE, method='decode_all')
    )


def expand(pyramid, output, number):
  """The expander of a level, given the memory of that output."""
  level, batch = output.levels[number], output.batches[number]
  below = None
  if number:
    below = pyramid.levels[number - 1].compressor.quantizer.codebooks()
  return pyramid.levels[number].expander(
    batch.ids_BS,
    batch.document_BS,
    level.compressed.segments,
    level.compressed.quantized.vectors_BPD,
    None,
    below,
  )


make = functools.cache(Pyramid)


def make_rows(*documents):
  """Three rows, for one compilation: those not given are empty."""
  rows = [*documents, *[[]] * (3 - len(documents))]
  return tiny_pyramid.make_batch(rows, SIZE)


def paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def shapes(model):
  zeros = jnp.zeros((1, 8), jnp.int32)
  batch = Batch(zeros, zeros, zeros[:, 0])
  return jax.eval_shape(model.init, jax.random.key(0), batch)


@pytest.mark.parametrize('top_lm', [None, 'discrete'])
def test_a_single_level_keeps_the_names_of_its_parameters(top_lm):
  config = tiny_pyramid.make_config({}, top_lm=top_lm)
  alone = Abstractinator(config.levels[0], NUM_BYTES, XLA, jnp.float32)
  found = paths(shapes(tiny_pyramid.make_model(config)))
  of_top = {name for name in found if name.startswith('params/top_lm/')}
  assert bool(of_top) == (top_lm is not None)
  assert {
    name: shape for name, shape in found.items() if name not in of_top
  } == paths(shapes(alone))


def test_parameters_of_a_level_over_codes():
  found = paths(shapes(tiny_pyramid.make_model(TWO)))
  bottom, upper = (
    {
      name.removeprefix(prefix): shape
      for name, shape in found.items()
      if name.startswith(prefix)
    }
    for prefix in ('params/level_0/', 'params/level_1/')
  )
  codes = {'special/embedding': (3, 6), 'kernel': (6, 20), 'log_scale': ()}
  entropy_model, expander = 'compressor/entropy_model', 'expander'
  assert {name: upper[name] for name in upper.keys() - bottom.keys()} == {
    f'{part}/vocabulary/{name}': shape
    for part in (entropy_model, expander)
    for name, shape in codes.items()
  } | {'compressor/project/kernel': (16, 20)}
  assert bottom.keys() - upper.keys() == {
    f'{entropy_model}/embed/embedding',
    f'{entropy_model}/head/kernel',
    'compressor/embed/embedding',
    f'{expander}/vocabulary/embed/embedding',
    f'{expander}/vocabulary/head/kernel',
  }
  modules = {n.split('/')[1] for n in found if n.startswith('params/')}
  assert modules == {'level_0', 'level_1', 'top_lm'}


# A digit is the case of several with one; `pyramid_overfit_test` learns it.
@pytest.mark.parametrize(
  'kind',
  ['rvq', *(pytest.param(k, marks=pytest.mark.nightly) for k in ('vq', 'fsq'))],
)
def test_codes_of_a_level_are_the_ids_of_the_next(kind):
  pyramid = make(FORMS[kind])
  output = pyramid.call(make_rows([(23, 0), (12, 1)], [(40, 2)]))
  child, ids = output.levels[0].compressed, output.batches[1]
  queries = pyramid.config.levels[0].pooling.num_queries
  num_codes = pyramid.config.levels[0].quantizer.num_codes
  assert ids.ids_BS.shape[1] == pyramid.config.sequence_lengths(SIZE)[1]
  for row in range(3):
    count = int(child.segments.count_B[row]) * queries
    np.testing.assert_array_equal(
      ids.ids_BS[row, :count], child.quantized.codes_BP[row, :count]
    )
    assert (ids.ids_BS[row, count:] == num_codes + Special.PAD).all()
    assert (ids.document_BS[row, count:] == -1).all()
    starts = np.asarray(child.segments.is_start_BS[row])
    documents = np.asarray(output.batches[0].document_BS[row])[starts]
    np.testing.assert_array_equal(
      ids.document_BS[row, :count], documents.repeat(queries)
    )
  # Every document ends once, with the last of its codes.
  top = output.top_codes
  document_BP = np.asarray(top.document_BP)
  following = np.pad(document_BP, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]
  np.testing.assert_array_equal(
    top.is_end_BP, (document_BP >= 0) & (document_BP != following)
  )
  assert int(top.is_end_BP.sum()) == 3


def test_a_document_that_the_row_cuts_off_does_not_end():
  batch = make_rows([(23, 0), (17, 1)])
  cut = batch.replace(ids_BS=batch.ids_BS.at[0, -1].set(7))
  output = make(TWO).call(cut)
  assert int(output.top_codes.is_end_BP.sum()) == 1


@pytest.mark.parametrize('kind', FORMS)
def test_codes_have_a_probability_that_adds_up_to_one(kind):
  pyramid = make(FORMS[kind])
  child, level = pyramid.config.levels
  num_codes = child.quantizer.num_codes

  @jit
  def nats(states_D):
    def all_codes(pyramid):
      level = pyramid.levels[1]
      codebooks = pyramid.levels[0].compressor.quantizer.codebooks()
      output = level.compressor.entropy_model.predict(
        states_D, states_D, codebooks
      )
      output = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_codes, *x.shape)), output
      )
      of_entropy_model = level.compressor.entropy_model.nats(
        jnp.arange(num_codes), output, codebooks
      )
      vocabulary = level.expander.vocabulary
      told = vocabulary.predict(output.states, jnp.arange(num_codes), codebooks)
      of_expander = vocabulary.nats(told, jnp.arange(num_codes))
      return of_entropy_model, of_expander

    return pyramid.model.apply(pyramid.variables, method=all_codes)

  for found in nats(jax.random.normal(jax.random.key(3), (level.d_model,))):
    assert float(jnp.std(found)) > 0.1
    np.testing.assert_allclose(jnp.sum(jnp.exp(-found)), 1.0, rtol=1e-5)


def changed_at(batch, position):
  ids = batch.ids_BS.at[0, position].set((batch.ids_BS[0, position] + 99) % 256)
  return batch.replace(ids_BS=ids)


@kinds
def test_no_prediction_knows_what_comes_after_it(kind):
  """Changing a byte changes nothing before it, at any level."""
  pyramid = make(FORMS[kind])
  batch = make_rows([(29, 0), (11, 1)])
  before = pyramid.call(batch)
  reached = 0
  for position in (3, 10, 17, 26):
    after = pyramid.call(changed_at(batch, position))
    # A prediction at the place of an id is made of the ids before it.
    place = position
    for number, expander in enumerate(pyramid.expand):
      a, b = before.levels[number], after.levels[number]
      # The codes of the level are given, whatever became of them.
      quantized = a.compressed.quantized
      given = b.replace(compressed=b.compressed.replace(quantized=quantized))
      given = after.replace(
        levels=(*after.levels[:number], given, *after.levels[number + 1 :])
      )
      expanded = [expander(output) for output in (before, given)]
      for x, y in (
        (a.compressed.entropy_logits_BSV, b.compressed.entropy_logits_BSV),
        (a.compressed.entropy_bits_BS, b.compressed.entropy_bits_BS),
        (a.compressed.segments.is_start_BS, b.compressed.segments.is_start_BS),
        *zip(*(e.logits[:1] for e in expanded), strict=True),
      ):
        np.testing.assert_array_equal(x[0, : place + 1], y[0, : place + 1])
      for x, y in (
        (a.compressed.entropy_nats_BS, b.compressed.entropy_nats_BS),
        *([[e.nats_BS for e in expanded], [e.end_logits_BS for e in expanded]]),
      ):
        np.testing.assert_array_equal(x[0, :place], y[0, :place])
      slot = int(a.compressed.segments.index_BS[0, place])
      place = slot * pyramid.config.levels[number].pooling.num_queries
      for x, y in (
        (quantized.codes_BP, b.compressed.quantized.codes_BP),
        (quantized.vectors_BPD, b.compressed.quantized.vectors_BPD),
      ):
        np.testing.assert_array_equal(x[0, :place], y[0, :place])
    for x, y in zip(before.top_lm.logits, after.top_lm.logits, strict=True):
      np.testing.assert_array_equal(x[0, :place], y[0, :place])
    np.testing.assert_array_equal(
      before.top_lm.logits[0][0, place], after.top_lm.logits[0][0, place]
    )
    ends = (x.top_lm.end_logits_BP[0] for x in (before, after))
    np.testing.assert_array_equal(*(x[:place] for x in ends))
    first = before.top_lm.logits[0], after.top_lm.logits[0]
    reached += not np.array_equal(*first)
  assert reached > 0


@kinds
def test_documents_rows_and_padding_do_not_touch_each_other(kind):
  pyramid = make(FORMS[kind])
  together = make_rows([(23, 0), (12, 1)], [(40, 2)])
  alone = make_rows([(12, 1)], [(40, 2)], [(23, 0)])
  a, b = pyramid.call(together), pyramid.call(alone)
  of_a, of_b = pyramid_losses.terms(a), pyramid_losses.terms(b)
  assert set(of_a) > {'level1/expander', 'top_lm_code', 'top_lm_end'}
  for name in of_a:
    assert np.isfinite(of_a[name])
    np.testing.assert_allclose(of_a[name], of_b[name], rtol=1e-5, err_msg=name)

  def codes_of(output, row, document):
    is_own = np.asarray(output.top_codes.document_BP[row]) == document
    return np.asarray(output.top_codes.codes_BP[row])[is_own]

  for at, other in (((0, 0), (2, 0)), ((0, 1), (0, 0)), ((1, 0), (1, 0))):
    assert len(codes_of(a, *at))
    np.testing.assert_array_equal(codes_of(a, *at), codes_of(b, *other))


TERMS = ('level1/entropy_model', 'level1/expander', 'top_lm_code')


@functools.cache
def gradient_of_terms(config):
  """Of parameters, of a sum of terms by their weights: one compilation."""
  pyramid = make(config)
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)]], SIZE)
  rest = {k: v for k, v in pyramid.variables.items() if k != 'params'}

  def loss(params, weights):
    output = pyramid.model.apply({'params': params, **rest}, batch)
    terms = pyramid_losses.terms(output)
    return sum(
      weight * terms[term] for term, weight in zip(TERMS, weights, strict=True)
    )

  gradient = jit(jax.grad(loss))
  return lambda weights: gradient(pyramid.variables['params'], weights)


def gradient_paths(term, config):
  """Parameters that a term moves."""
  weights = jnp.asarray([float(term == other) for other in TERMS])
  found = jax.tree_util.tree_leaves_with_path(
    gradient_of_terms(config)(weights)
  )
  for _, leaf in found:
    assert np.isfinite(leaf).all()
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in found
    if np.any(leaf)
  }


@pytest.mark.parametrize(
  ('term', 'moved'),
  [
    ('level1/entropy_model', {'level_1/compressor/entropy_model'}),
    (
      'level1/expander',
      {
        'level_0/compressor/embed',
        'level_0/compressor/encoder',
        'level_0/compressor/pooling',
        'level_0/compressor/quantizer',
        'level_1/compressor/project',
        'level_1/compressor/encoder',
        'level_1/compressor/pooling',
        'level_1/compressor/quantizer',
        'level_1/expander/vocabulary',
        'level_1/expander/offset_embed',
        'level_1/expander/block_0',
        'level_1/expander/norm',
      },
    ),
    (
      'top_lm_code',
      {
        f'top_lm/{part}'
        for part in ('project/kernel', 'stack/block_0', 'stack/norm')
      }
      | {'top_lm/start', 'top_lm/code_head/logits_0'},
    ),
  ],
)
def test_gradients_cross_levels_through_the_vectors_only(term, moved):
  found = gradient_paths(term, TWO)
  assert {'/'.join(path.split('/')[:3]) for path in found} == moved


def test_statistics_after_microbatches_are_those_of_the_batch():
  """Of the second level: three microbatches, then one step of the states."""
  pyramid = make(TWO)
  batch = tiny_pyramid.make_batch(
    [[(23, 0), (12, 1)], [(40, 2)], [(31, 3)]], 40
  )
  mutable = ['vq', 'calibration']
  apply = jit(pyramid.model.apply, method='compress_all', mutable=mutable)
  params = pyramid.variables['params']
  start = {name: pyramid.variables[name] for name in mutable}
  output, whole = apply({'params': params, **start}, batch)
  parts = start
  for row in (2, 0, 1):
    # Its row alone, and empty ones for one compilation.
    is_other = jnp.arange(3)[:, None] != row
    micro = batch.replace(
      document_BS=jnp.where(is_other, -1, batch.document_BS)
    )
    _, parts = apply({'params': params, **parts}, micro)
  for a, b in ((whole, parts), (advance(whole), advance(parts))):
    state_a, state_b = (
      x['vq']['level_1']['compressor']['quantizer']['state'] for x in (a, b)
    )
    for name in ('hits_K', 'priority_R', 'last_hit_step_K', 'reservoir_step_R'):
      np.testing.assert_array_equal(
        *(getattr(s, name) for s in (state_a, state_b))
      )
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), a, b
    )
  state = whole['vq']['level_1']['compressor']['quantizer']['state']
  counts = output.levels[1].compressed.segments.count_B
  assert float(state.hits_K.sum()) == float(counts.sum()) > 0
  moved = advance(whole)['vq']['level_1']['compressor']['quantizer']['state']
  assert int(moved.step) == 1


WINDOW = tiny_pyramid.make_config(
  {'pooling.num_queries': 2},
  {'expander.context': 'window', 'expander.lookback': 1},
)


@pytest.mark.parametrize('config', [TWO, WINDOW], ids=['segment', 'window'])
def test_documents_decode_as_they_do_alone(config):
  # So that segments go on: untrained, both heads say that they end at once.
  pyramid = Pyramid(
    config,
    lambda path, x: -x if 'end_head' in jax.tree_util.keystr(path) else x,
  )
  slots = pyramid.config.sequence_lengths(SIZE)[1]
  rng = np.random.default_rng(5)
  codes = rng.integers(0, 12, (3, slots))
  # The first row holds the documents of the others one after the other.
  codes[0, :3], codes[0, 3:5] = codes[1, :3], codes[2, :2]
  count = np.array([5, 3, 2])
  lowest = np.zeros((3, slots), int)
  lowest[0, 3:5] = 3
  decoded = pyramid.decode(
    jnp.asarray(codes), jnp.arange(slots) < count[:, None], jnp.asarray(lowest)
  )

  def texts(row, first, past):
    is_own = np.asarray(decoded.rows.is_valid_BP[row])
    origin = np.asarray(decoded.rows.origin_BP[row])
    is_own = is_own & (origin >= first) & (origin < past)
    return [
      list(np.asarray(ids[:length]))
      for ids, length in zip(
        decoded.ids_BPL[row][is_own],
        decoded.length_BP[row][is_own],
        strict=True,
      )
    ]

  assert texts(0, 0, 3) == texts(1, 0, 3)
  assert texts(0, 3, 5) == texts(2, 0, 2)
  assert sum(map(len, texts(1, 0, 3))) > 3


def test_top_slots_follow_the_segments():
  pyramid = make(TWO)
  output = pyramid.call(make_rows([(23, 0), (12, 1)]))
  index_0, index_1 = (
    np.asarray(level.compressed.segments.index_BS[0]) for level in output.levels
  )
  want = [index_1[slot] if slot >= 0 else -1 for slot in index_0]
  np.testing.assert_array_equal(top_slots(output)[0], want)
  assert max(want) > 1
