"""Entropy model id by id against whole rows; its first loss; its entropies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import (
  softmax_cross_entropy_with_integer_labels as cross_entropy,
)

from abstractinator.config.attention import AttentionConfig
from abstractinator.model.entropy_model import predictive_entropy_bits
from abstractinator.types import NUM_BYTES, VOCAB_SIZE
from tests.helpers import tiny_entropy_model
from tests.helpers.jitted import jit_to_numpy

SIZE = 24
# Documents of rows, right-padded; one row is empty.
LENGTHS = ((3, 9, 7), (15,), (), (1, 1), (24,))
ROWS = len(LENGTHS)
GAUSSIAN = {
  'entropy_heads__gaussian_components': 2,
  'entropy_heads__gaussian_layers': 2,
}
MLA = AttentionConfig('mla', kv_dim=6, query_dim=5, retrieval_dim=4)


class Model:
  """An entropy model, its variables, and its methods compiled."""

  def __init__(self, config):
    self.module, self.initial, self.variables = tiny_entropy_model.make(config)
    apply = self.module.apply
    self.call = jit_to_numpy(apply)
    self.prefill = jit_to_numpy(apply, method='prefill')
    self.step = jit_to_numpy(apply, method='step')
    self.init_cache = functools.partial(
      apply, self.variables, method='init_cache'
    )


@pytest.fixture(scope='module')
def make_model(tiny_config):
  @functools.cache
  def build(form, **changes):
    forms = {
      'entropy_model__attention__form': form,
      'entropy_model__attention__kv_dim': MLA.kv_dim,
      'entropy_model__attention__query_dim': MLA.query_dim,
      'entropy_model__attention__retrieval_dim': MLA.retrieval_dim,
    }
    if form == 'mla':
      changes = changes | forms
    return Model(tiny_config(**changes))

  return build


def make_rows():
  """Ids, documents, and the number of ids of each row."""
  ids = np.random.default_rng(0).integers(0, NUM_BYTES, (ROWS, SIZE))
  document = np.full((ROWS, SIZE), -1)
  for row, lengths in enumerate(LENGTHS):
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    document[row, : len(numbers)] = numbers
  count = np.sum(document >= 0, axis=1)
  return np.int32(ids), np.int32(document), np.int32(count)


def assert_close(got, want):
  # Logits and means are as large as 20.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5),
    got,
    want,
  )


SETTINGS = [
  ('regular', {}),
  ('mla', {}),
  ('regular', {'entropy_model__window': None}),
  ('mla', {'entropy_model__window': None, **GAUSSIAN}),
  ('regular', {'entropy_heads__tie_to_embedding': True, **GAUSSIAN}),
]


@pytest.mark.parametrize(('form', 'changes'), SETTINGS, ids=str)
@pytest.mark.parametrize('cuts', [(0,) * ROWS, (11, 15, 0, 1, 6)], ids=str)
def test_steps_after_a_prefill_predict_what_the_whole_row_does(
  make_model, form, changes, cuts
):
  """Rows are cut within documents, at their ends, at the start and the end."""
  model = make_model(form, **changes)
  ids, document, count = make_rows()
  whole = model.call(model.variables, ids, document)
  assert (whole.mixture is not None) == ('gaussian' in str(changes))
  at = np.array(cuts)
  before = np.arange(SIZE) < at[:, None]
  # Ids that are still to come are not read.
  prefix_ids = np.where(before, ids, 77)
  prefix, cache = model.prefill(
    model.variables,
    prefix_ids,
    np.where(before, document, -1),
    model.init_cache(ROWS, SIZE, jnp.float32),
  )
  assert_close(
    jax.tree.map(lambda x: x[before], prefix),
    jax.tree.map(lambda x: x[before], whole),
  )
  rng = np.random.default_rng(1)
  row = np.arange(ROWS)
  while (at < count).any():
    # Rows move at their own pace.
    active = (at < count) & (rng.random(ROWS) < 0.8)
    now = np.minimum(at, SIZE - 1)
    is_first = (now == 0) | (document[row, now] != document[row, now - 1])
    predicted, cache = model.step(
      model.variables,
      # The id before the first one of a document is ignored.
      np.where(is_first, 77, ids[row, now - 1]),
      np.where(active, document[row, now], 5),
      cache,
      active,
    )
    assert_close(
      jax.tree.map(lambda x, active=active: x[active], predicted),
      jax.tree.map(lambda x, a=active, n=now: x[row, n][a], whole),
    )
    at = at + active
  assert (at == count).all()


def test_a_first_loss_is_near_that_of_equal_odds(make_model):
  ids, document, _ = make_rows()
  for tied in (False, True):
    model = make_model('regular', entropy_heads__tie_to_embedding=tied)
    logits = model.call(model.initial, ids, document).logits
    assert logits.shape[-1] == VOCAB_SIZE
    loss = cross_entropy(logits, ids)[document >= 0]
    np.testing.assert_allclose(loss.mean(), np.log(VOCAB_SIZE), rtol=0.02)
    # The id that is fed is not given away.
    np.testing.assert_allclose(loss, np.log(VOCAB_SIZE), rtol=0.2)


FILTERS = [
  {'top_k': 1},
  {'top_k': 3},
  {'top_p': 1e-9},
  {'top_p': 0.999},
  {'temperature': 1e-3},
  {'temperature': 1e3},
  {'temperature': 1e-6},
  {'temperature': 1e6},
  {'temperature': 1e-3, 'top_k': 2, 'top_p': 1e-9},
  {'temperature': 1e3, 'top_k': 500, 'top_p': 0.5},
]


@pytest.mark.parametrize('filters', FILTERS, ids=str)
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_entropies_are_finite_under_every_filter(
  make_model, tiny_config, filters, scale
):
  """Predictions as they are, and with logits so large that they are certain."""
  model = make_model('regular', **SETTINGS[-1][1])
  ids, document, _ = make_rows()
  predicted = model.call(model.variables, ids, document)
  predicted = predicted.replace(logits=predicted.logits * scale)
  changes = {f'entropy_heads__{name}': x for name, x in filters.items()}
  heads = tiny_config(**changes).entropy_heads
  bits = predictive_entropy_bits(predicted, heads)
  allowed = heads.top_k or VOCAB_SIZE
  assert (bits >= 0).all()
  assert (bits <= np.log2(min(allowed, VOCAB_SIZE)) + 1e-5).all()
  if 'temperature' in filters and len(filters) == 1:
    gaussian = tiny_config(
      **changes, **GAUSSIAN, entropy_heads__source='gaussian'
    ).entropy_heads
    assert jnp.isfinite(predictive_entropy_bits(predicted, gaussian)).all()
