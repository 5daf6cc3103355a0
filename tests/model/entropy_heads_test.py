"""Losses of the Gaussian head of an entropy model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import gaussian
from abstractinator.types import EOS_ID, NUM_BYTES
from tests.helpers import tiny_entropy_model
from tests.helpers.jitted import jit

SIZE = 12


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
  # EOS, the last id of each document, is fed to no position.
  assert EOS_ID == ids[0, 6] == ids[0, 11]
  assert of_id[EOS_ID] == 0


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
