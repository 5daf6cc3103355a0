"""Byte dropout: which ids the expander does not see in training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.config import ModelConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.objective import losses
from abstractinator.objective.eval_step import eval_step
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.ops.sampling import hidden_ids
from abstractinator.runs.state import TrainState
from abstractinator.training.step import train_step
from abstractinator.types import NUM_BYTES, PAD_ID
from tests.helpers.implementations import XLA, XLA_CONFIG
from tests.helpers.jitted import jit
from tests.helpers.loss_weights import loss_weights

SIZE = 24
WEIGHTS = loss_weights(
  entropy_model=1.0, expander=1.0, end=1.0, commitment=0.25, codebook=1.0
)


@pytest.fixture(scope='module')
def level(tiny_level):
  return tiny_level(expander__byte_dropout=0.5, expander__context='full')


@pytest.fixture(scope='module')
def batch(make_batch):
  return make_batch([[14, 10], [SIZE], [5, 9], [20]], SIZE)


def test_a_row_has_the_same_ids_hidden_wherever_it_is_computed():
  key, row_B = jax.random.key(3), jnp.arange(40)
  whole = np.asarray(hidden_ids(key, row_B, 500, 0.3))
  for rows in (row_B[7:9], row_B[::-1]):
    np.testing.assert_array_equal(hidden_ids(key, rows, 500, 0.3), whole[rows])
  assert abs(whole.mean() - 0.3) < 0.01
  assert len(np.unique(whole, axis=0)) == 40
  other = np.asarray(hidden_ids(jax.random.key(4), row_B, 500, 0.3))
  assert (whole != other).any(axis=1).all()


def test_hidden_ids_are_fed_as_pad_and_first_ids_are_not_hidden(level, batch):
  """A change of a hidden id changes nothing after it."""
  compressed = level.compress(level.variables, batch)
  expand = jit(level.model.apply, method=lambda m, *a: m.expander(*a))

  def nats(ids, hidden):
    return np.asarray(
      expand(
        level.variables,
        ids,
        batch.document_BS,
        compressed.segments,
        compressed.quantized.vectors_BPD,
        hidden,
      ).nats_BS
    )

  shown = jnp.zeros_like(batch.ids_BS, bool)
  # Id 5 of each row is predicted from PAD in place of id 4.
  hidden = shown.at[:, 5].set(True)
  other = batch.ids_BS.at[:, 4].set((batch.ids_BS[:, 4] + 1) % 256)
  as_pad = batch.ids_BS.at[:, 4].set(PAD_ID)
  rows, after = np.array([0, 1, 3]), slice(5, 10)
  want = nats(as_pad, shown)[rows, after]
  for ids in (batch.ids_BS, other):
    np.testing.assert_array_equal(nats(ids, hidden)[rows, after], want)
  assert (nats(batch.ids_BS, shown)[rows, after] != want).any(axis=1).all()
  # The first id of the second document of row 0 is predicted from BOS.
  np.testing.assert_array_equal(
    nats(batch.ids_BS, shown.at[0, 14].set(True)), nats(batch.ids_BS, shown)
  )


def test_only_calls_with_a_key_hide_ids(level, batch, tiny_level):
  apply = jit(level.model.apply)
  without = apply(level.variables, batch).expanded.nats_BS
  plain = tiny_level(expander__context='full')
  np.testing.assert_array_equal(
    without, plain.call(plain.variables, batch).expanded.nats_BS
  )
  key = {'byte_dropout': jax.random.key(0)}
  hidden = apply(level.variables, batch, rngs=key).expanded.nats_BS
  assert (without != hidden).any(axis=1).all()
  # Microbatches have the same ids hidden.
  for rows in ([2, 0], [3, 1]):
    part = jax.tree.map(lambda x, r=rows: x[jnp.array(r)], batch)
    got = apply(level.variables, part, rngs=key).expanded.nats_BS
    np.testing.assert_allclose(got, hidden[jnp.array(rows)], atol=2e-5)


@pytest.mark.nightly
def test_a_training_step_hides_by_seed_and_step(level, batch):
  pyramid = AbstractinatorPyramid(
    ModelConfig((level.config,), None, 'float32', XLA_CONFIG),
    NUM_BYTES,
    XLA,
    jnp.float32,
  )
  optimizer = optax.sgd(0.0)
  collections = {k: {'level_0': v} for k, v in level.variables.items()}
  variables = dict(collections)
  params = collections.pop('params')

  def loss(step, seed):
    state = TrainState(
      jnp.int32(step), params, collections, optimizer.init(params)
    )
    _, metrics = run(state, batch, seed=seed)
    return float(metrics.levels[0]['loss_expander'].total)

  # A run has one seed; for two of them, one compilation.
  run = jit(
    train_step,
    model=pyramid,
    optimizer=optimizer,
    weights=WEIGHTS,
    objective=OBJECTIVES['all'],
  )
  found = [loss(0, 0), loss(1, 0), loss(0, 1)]
  assert len(set(found)) == 3
  assert loss(1, 0) == found[1]
  # Evaluation hides nothing.
  scores = jit(
    eval_step, model=pyramid, weights=WEIGHTS, objective=OBJECTIVES['all']
  )(variables, batch)
  output = level.call(level.variables, batch)
  nats = losses.level_terms(output, batch)['expander']
  np.testing.assert_allclose(
    scores.levels[0]['expander_bits_per_byte'].total,
    nats / np.log(2),
    rtol=1e-5,
  )
