"""Predictions of ids from the codes that a top LM predicts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.top_lm import CodeSequenceOutput
from abstractinator.objective import losses
from abstractinator.ops import digits as digits_lib
from tests.helpers import tiny_pyramid, tiny_quantizer
from tests.helpers.jitted import init, jit

SIZE = 40
KINDS = {
  'vq': {},
  'rvq': {
    'quantizer.kind': 'rvq',
    'quantizer.depth': 2,
    'quantizer.codebook_size': 4,
  },
  'fsq': {'quantizer.kind': 'fsq', 'quantizer.levels': (4, 3)},
}


def expanding(kind, mode='discrete', lower=()):
  config = tiny_pyramid.make_config(*lower, KINDS[kind], top_lm=mode)
  top_lm = dataclasses.replace(config.top_lm, expand=True)
  return dataclasses.replace(config, top_lm=top_lm)


@pytest.mark.parametrize('variant', ['vq code space', 'rvq code space', 'fsq'])
def test_the_mean_vector_is_that_of_all_codes(variant):
  model = tiny_quantizer.model(**tiny_quantizer.VARIANTS[variant])
  variables = init(model, jax.random.key(0), *tiny_quantizer.inputs())
  sizes = model.config.stage_sizes
  rng = np.random.default_rng(0)
  probabilities = tuple(
    jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 3, size)), jnp.float32))
    for size in sizes
  )

  def vectors(quantizer):
    every = jnp.arange(quantizer.config.num_codes)[None]
    return quantizer.expected(probabilities), quantizer.lookup(every)[0]

  mean, of_code_ND = jit(model.apply, method=vectors)(variables)
  digits_NM = digits_lib.decompose(np.arange(len(of_code_ND)), sizes)
  joint_BPN = np.prod(
    [np.asarray(p)[..., digits_NM[:, m]] for m, p in enumerate(probabilities)],
    axis=0,
  )
  np.testing.assert_allclose(mean, joint_BPN @ of_code_ND, atol=1e-5)


@pytest.mark.parametrize(
  ('kind', 'lower'),
  [
    pytest.param('rvq', ({},), id='rvq-two'),
    # Kinds differ in `expected`, which the test above has alone.
    *(
      pytest.param(kind, lower, id=name, marks=pytest.mark.nightly)
      for name, kind, lower in (
        ('fsq-one', 'fsq', ()),
        ('vq-one', 'vq', ()),
        ('rvq-one', 'rvq', ()),
        ('vq-two', 'vq', ({},)),
        ('fsq-two', 'fsq', ({},)),
      )
    ),
  ],
)
def test_right_predictions_expand_as_the_true_codes_do(
  kind, lower, monkeypatch
):
  """A top LM that knows the codes gives the memory that the level has."""
  config = expanding(kind, lower=lower)
  model = tiny_pyramid.make_model(config)
  variables = tiny_pyramid.make_variables(config)
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)], []], SIZE)
  sizes = config.levels[-1].quantizer.stage_sizes

  def knowing(self, sequence):
    digits_BPM = digits_lib.decompose(sequence.codes_BP, sizes)
    logits = tuple(
      30.0 * jax.nn.one_hot(digits_BPM[..., m], size)
      for m, size in enumerate(sizes)
    )
    return CodeSequenceOutput(
      logits, None, jnp.zeros(sequence.codes_BP.shape), jnp.zeros(())
    )

  top_lm = 'abstractinator.model.top_lm'
  monkeypatch.setattr(f'{top_lm}.CodeSequenceTransformer.__call__', knowing)
  output = jit(model.apply)(variables, batch)
  real = np.asarray(output.batches[-1].document_BS >= 0)
  np.testing.assert_allclose(
    output.top_lm_expanded.nats_BS[real],
    output.levels[-1].expanded.nats_BS[real],
    atol=2e-5,
  )
  assert real.sum() > 10


@pytest.mark.parametrize('mode', ['discrete', 'continuous'])
def test_what_it_costs_teaches_the_top_lm_and_moves_no_codebook(mode):
  config = expanding('vq', mode)
  model = tiny_pyramid.make_model(config)
  variables = tiny_pyramid.make_variables(config)
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)], [(40, 2)]], SIZE)
  collections = {k: v for k, v in variables.items() if k != 'params'}

  def cost(params, config):
    output, after = tiny_pyramid.make_model(config).apply(
      {'params': params, **collections}, batch, mutable=list(collections)
    )
    terms = losses.pyramid_terms(output).whole
    return terms.get('top_lm_expander', jnp.zeros(())), after

  run = jit(jax.grad(functools.partial(cost, config=config), has_aux=True))
  grads, after = run(variables['params'])
  assert model.config.top_lm.expand
  head = 'code_head' if mode == 'discrete' else 'vector_head'
  for leaf in jax.tree.leaves(grads['top_lm'][head]):
    assert np.abs(leaf).max() > 0
  # Whether a document ends is another question.
  assert not np.abs(grads['top_lm']['end_head']['kernel']).max()
  silent = dataclasses.replace(
    config, top_lm=dataclasses.replace(config.top_lm, expand=False)
  )
  _, without = jit(cost, config=silent)(variables['params'])
  jax.tree.map(np.testing.assert_array_equal, after, without)
