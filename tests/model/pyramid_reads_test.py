"""Causality of a pyramid, and the parameters that its losses move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.objective import losses
from tests.helpers import tiny_pyramid
from tests.helpers.compiled_pyramid import (
  FORMS,
  SIZE,
  TWO,
  Pyramid,
  kinds,
  make,
  make_rows,
)
from tests.helpers.jitted import jit


def changed_at(batch, position):
  ids = batch.ids_BS.at[0, position].set((batch.ids_BS[0, position] + 99) % 256)
  return batch.replace(ids_BS=ids)


def _ends(expanded):
  """Predictions of ends to compare; none where the entropy model says them."""
  logits = [output.end_logits_BS for output in expanded]
  return [] if logits[0] is None else [logits]


@kinds
def test_no_prediction_knows_what_comes_after_it(kind):
  """A change of a byte changes nothing before it, at any level."""
  pyramid = make(FORMS[kind])
  batch = make_rows([(29, 0), (11, 1)])
  before = pyramid.call(batch)
  reached = 0
  for position in (3, 10, 17, 26):
    after = pyramid.call(changed_at(batch, position))
    # Predictions of the id at a place are made from the ids before it.
    place = position
    for number, expander in enumerate(pyramid.expand):
      a, b = before.levels[number], after.levels[number]
      # Both expanders are given the codes of the unchanged row.
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
        [e.nats_BS for e in expanded],
        *_ends(expanded),
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
  of_a, of_b = (losses.pyramid_terms(x).flattened() for x in (a, b))
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
  """Returns a function from weights of `TERMS` to gradients of parameters."""
  pyramid = make(config)
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)]], SIZE)
  rest = {k: v for k, v in pyramid.variables.items() if k != 'params'}

  def loss(params, weights):
    output = pyramid.model.apply({'params': params, **rest}, batch)
    terms = losses.pyramid_terms(output).flattened()
    return sum(
      weight * terms[term] for term, weight in zip(TERMS, weights, strict=True)
    )

  gradient = jit(jax.grad(loss))
  return lambda weights: gradient(pyramid.variables['params'], weights)


def gradient_paths(term, config):
  """Returns the paths of the parameters that a term moves."""
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


WINDOW = tiny_pyramid.make_config(
  {'pooling.num_queries': 2},
  {'expander.context': 'window', 'expander.lookback': 1},
)


@pytest.mark.parametrize(
  'config',
  [
    pytest.param(TWO, id='segment'),
    # Rows of a level in a window decode in `rows_test`, id by id.
    pytest.param(WINDOW, id='window', marks=pytest.mark.nightly),
  ],
)
def test_documents_decode_as_they_do_alone(config):
  # Untrained heads end every segment at once; negated, they let it go on.
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
