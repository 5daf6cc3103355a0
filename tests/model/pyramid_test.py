"""Pyramids: parameters, codes between levels, statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.level import Abstractinator
from abstractinator.model.pyramid import advance_collections
from abstractinator.types import NUM_BYTES, Batch, Special
from tests.helpers import tiny_pyramid
from tests.helpers.compiled_pyramid import FORMS, SIZE, TWO, make, make_rows
from tests.helpers.implementations import XLA
from tests.helpers.jitted import init, jit


def paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def shapes(model):
  zeros = jnp.zeros((1, 8), jnp.int32)
  batch = Batch(zeros, zeros, zeros[:, 0])
  return jax.eval_shape(model.init, jax.random.key(0), batch)


@pytest.mark.parametrize(
  'top_lm', [pytest.param(None, marks=pytest.mark.nightly), 'discrete']
)
def test_a_single_level_starts_as_it_does_without_a_pyramid(top_lm):
  """Its variables lie under `level_0`, and are the same numbers."""
  config = tiny_pyramid.make_config(
    {'expander.byte_dropout': 0.5}, top_lm=top_lm
  )
  alone = Abstractinator(config.levels[0], NUM_BYTES, XLA, jnp.float32)
  pyramid = tiny_pyramid.make_model(config)
  batch = make_rows([(23, 0), (12, 1)])
  want, found = (
    dict(init(model, jax.random.key(0), batch)) for model in (alone, pyramid)
  )
  assert ('top_lm' in found['params']) == (top_lm is not None)
  for name, variables in want.items():
    assert set(found[name]) - {'top_lm'} == {'level_0'}
    jax.tree.map(
      np.testing.assert_array_equal, found[name]['level_0'], variables
    )
  # So are the ids that are hidden from the expander.
  rngs = {'byte_dropout': jax.random.key(1)}
  a = jit(alone.apply)(want, batch, rngs=rngs).expanded.nats_BS
  b = jit(pyramid.apply)(found, batch, rngs=rngs).levels[0].expanded.nats_BS
  np.testing.assert_array_equal(a, b)


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
  output = make(FORMS['rvq']).call(cut)
  assert int(output.top_codes.is_end_BP.sum()) == 1


@pytest.mark.parametrize(
  'kind',
  [
    # Digits of `fsq` are predicted as those of `rvq`; `rate_test` has both.
    pytest.param(kind, marks=[pytest.mark.nightly] * (kind == 'fsq'))
    for kind in FORMS
  ],
)
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


def test_statistics_after_microbatches_are_those_of_the_batch():
  """Three microbatches, then the end of the step, at the second level."""
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
    # One row, and empty ones, so that all shapes are the same.
    is_other = jnp.arange(3)[:, None] != row
    micro = batch.replace(
      document_BS=jnp.where(is_other, -1, batch.document_BS)
    )
    _, parts = apply({'params': params, **parts}, micro)
  for a, b in (
    (whole, parts),
    (advance_collections(whole), advance_collections(parts)),
  ):
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
  counts = output.levels[1].segments.count_B
  assert float(state.hits_K.sum()) == float(counts.sum()) > 0
  moved = advance_collections(whole)['vq']['level_1']['compressor'][
    'quantizer'
  ]['state']
  assert int(moved.step) == 1
