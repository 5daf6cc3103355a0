"""Losses and draws of the heads of an entropy model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.entropy_model import EntropyOutput, sample_next
from abstractinator.ops import gaussian
from abstractinator.types import NUM_BYTES
from tests.helpers import tiny_entropy_model
from tests.helpers.jitted import jit

SIZE = 12
NUM_DRAWS = 4000


class Model:
  """An entropy model with a Gaussian head, and its variables."""

  def __init__(self, config):
    self.module, _, variables = tiny_entropy_model.make(config)
    self.params = variables['params']
    self.nats = jit(self._nats)
    self.grad = jit(jax.grad(lambda *args: jnp.sum(self._nats(*args))))
    self.grad_of_constant = jit(jax.grad(self._nats_of_constant))

  def _nats(self, params, ids_BS, document_BS):
    def run(module):
      output = module(ids_BS, document_BS)
      return module.gaussian_nats(ids_BS, output)

    return self.module.apply({'params': params}, method=run)

  def _nats_of_constant(self, params, target_BSD, ids_BS, document_BS):
    output = self.module.apply({'params': params}, ids_BS, document_BS)
    return jnp.sum(gaussian.nll_nats(output.mixture, target_BSD))


@pytest.fixture(scope='module')
def make_model(tiny_config):
  @functools.cache
  def build(**changes):
    settings = {
      f'entropy_heads__{name}': value
      for name, value in (dict(gaussian_components=2) | changes).items()
    }
    return Model(tiny_config(**settings))

  return build


def test_targets_of_the_gaussian_head_get_no_gradient(make_model, make_batch):
  """The embedding learns from the ids that are fed, as from any constant."""
  model, batch = make_model(), make_batch([[7, 5]], SIZE)
  ids, document = batch.ids_BS, batch.document_BS
  table = model.params['embed']['embedding']
  got = model.grad(model.params, ids, document)
  want = model.grad_of_constant(model.params, table[ids], ids, document)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    got,
    want,
  )
  of_id = np.abs(got['embed']['embedding']).max(axis=-1)
  assert of_id[np.asarray(ids[0, :6])].min() > 1e-3
  # The last id is fed to no position.
  assert of_id[ids[0, 6]] == 0 or ids[0, 6] in ids[0, :6]


def test_an_id_is_scored_at_its_place_given_those_before_it(
  make_model, make_batch
):
  """Row j of a batch has id j changed; its score and later ones change."""
  model, batch = make_model(), make_batch([[SIZE]], SIZE)
  rows = jnp.arange(SIZE)
  ids_SS = jnp.tile(batch.ids_BS, (SIZE, 1))
  document_SS = jnp.tile(batch.document_BS, (SIZE, 1))
  changed_SS = ids_SS.at[rows, rows].set((batch.ids_BS[0] + 7) % NUM_BYTES)
  before = model.nats(model.params, ids_SS, document_SS)
  after = model.nats(model.params, changed_SS, document_SS)
  difference_JS = np.abs(after - before)
  # A window of 5 reaches 5 ids further than the next.
  reach = np.arange(SIZE)[None, :] - np.arange(SIZE)[:, None]
  np.testing.assert_array_equal(difference_JS > 0, (reach >= 0) & (reach <= 6))


def test_a_score_is_the_density_of_the_embedding_of_the_id(
  make_model, make_batch
):
  model, batch = make_model(), make_batch([[SIZE]], SIZE)
  variables = {'params': model.params}
  output = jit(model.module.apply)(variables, batch.ids_BS, batch.document_BS)
  target = model.params['embed']['embedding'][batch.ids_BS]
  np.testing.assert_allclose(
    model.nats(model.params, batch.ids_BS, batch.document_BS),
    gaussian.nll_nats(output.mixture, target),
    rtol=1e-5,
  )


@pytest.mark.parametrize('layers', [0, 1])
@pytest.mark.parametrize('detach', [True, False])
def test_gaussian_detach_keeps_its_gradient_from_the_stack(
  make_model, make_batch, detach, layers
):
  model = make_model(gaussian_detach=detach, gaussian_layers=layers)
  batch = make_batch([[7, 5]], SIZE)
  grads = model.grad(model.params, batch.ids_BS, batch.document_BS)

  def largest(name):
    return max(np.abs(x).max() for x in jax.tree.leaves(grads[name]))

  for name in ('stack', 'embed'):
    assert (largest(name) == 0) == detach, name
  own = ['gaussian_head'] + ['gaussian_stack'] * (layers > 0)
  for name in own:
    assert largest(name) > 1e-3, name


def heads_of(tiny_config, **changes):
  settings = dict(gaussian_components=2, temperature=1.0) | changes
  return dataclasses.replace(tiny_config().entropy_heads, **settings)


def mixture(log_variance=0.0):
  """Two predictions, of which a component is likelier in one than the other."""
  rng = np.random.default_rng(0)
  return gaussian.Mixture(
    logits_J=jnp.log(jnp.array([[0.8, 0.2], [0.3, 0.7]])),
    mean_JD=jnp.asarray(3 * rng.normal(size=(2, 2, 3)), jnp.float32),
    log_variance_JD=jnp.full((2, 2, 3), log_variance, jnp.float32),
  )


def draws(output, heads):
  keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
  return np.asarray(jax.vmap(lambda key: sample_next(key, output, heads))(keys))


@pytest.mark.parametrize(
  ('filters', 'allowed'),
  [
    (dict(top_k=1), {2}),
    (dict(temperature=0.5), {0, 1, 2, 3}),
    (dict(temperature=0.5, top_k=2), {0, 2}),
    (dict(top_k=2), {0, 2}),
    (dict(top_p=0.5), {2}),
    (dict(top_p=0.7), {0, 2}),
    (dict(), {0, 1, 2, 3}),
  ],
)
def test_ids_are_drawn_from_the_filtered_logits(tiny_config, filters, allowed):
  p = np.array([0.25, 0.1, 0.6, 0.05])
  heads = heads_of(tiny_config, source='logit', **filters)
  output = EntropyOutput(jnp.log(jnp.asarray(p, jnp.float32))[None], mixture())
  found = draws(output, heads)
  assert found.shape == (NUM_DRAWS, 1)
  assert found.dtype == np.int32
  assert set(found.ravel().tolist()) == allowed
  kept = p ** (1 / heads.temperature) * np.isin(np.arange(4), list(allowed))
  rate = np.bincount(found.ravel(), minlength=4) / NUM_DRAWS
  # Five deviations.
  np.testing.assert_allclose(rate, kept / kept.sum(), atol=2.5 / NUM_DRAWS**0.5)


@pytest.mark.parametrize('temperature', [1.0, 0.5, 1e-3])
def test_embeddings_are_drawn_with_the_moments_of_the_mixture(
  tiny_config, temperature
):
  heads = heads_of(tiny_config, source='gaussian', temperature=temperature)
  m = mixture()
  # Logits say nothing here.
  found = draws(EntropyOutput(jnp.zeros((2, 4)), m), heads)
  assert found.shape == (NUM_DRAWS, 2, 3)
  p, mean = np.exp(m.logits_J)[..., None], np.asarray(m.mean_JD)
  want = (p * mean).sum(1)
  variance = (p * (mean**2 + temperature**2)).sum(1) - want**2
  # Five deviations.
  error = 5 * np.sqrt(variance / NUM_DRAWS)
  assert (np.abs(found.mean(0) - want) < error).all()
  np.testing.assert_allclose(found.var(0), variance, rtol=0.15)


def test_sharp_components_are_drawn_as_often_as_they_weigh(tiny_config):
  heads = heads_of(tiny_config, source='gaussian')
  m = mixture(log_variance=-20.0)
  found = draws(EntropyOutput(jnp.zeros((2, 4)), m), heads)
  distance = np.abs(found[:, :, None] - m.mean_JD).max(axis=-1)
  assert distance.min(axis=-1).max() < 1e-3
  rate = (distance.argmin(axis=-1) == 0).mean(axis=0)
  np.testing.assert_allclose(rate, [0.8, 0.3], atol=2.5 / NUM_DRAWS**0.5)
