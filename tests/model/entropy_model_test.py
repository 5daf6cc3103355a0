"""Predictions of an entropy model: which ids they are made from."""

import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.types import NUM_BYTES, VOCAB_SIZE

SIZE = 40


@pytest.fixture(scope='module')
def level(tiny_level):
  return tiny_level(entropy_model__num_layers=2)


def test_an_id_changes_exactly_the_predictions_within_reach_after_it(
  level, make_batch
):
  """Row j of a batch has id j changed: causality, reach and documents."""
  row = make_batch([[21, 11]], SIZE)
  ids_SS = jnp.tile(row.ids_BS, (SIZE, 1))
  document_SS = jnp.tile(row.document_BS, (SIZE, 1))
  changed_SS = ids_SS.at[jnp.arange(SIZE), jnp.arange(SIZE)].set(
    (row.ids_BS[0] + 7) % NUM_BYTES
  )
  before = level.entropy_logits(level.variables, ids_SS, document_SS)
  after = level.entropy_logits(level.variables, changed_SS, document_SS)
  difference_JS = np.max(np.abs(after - before), axis=-1)

  document_S = np.asarray(row.document_BS[0])
  j, s = np.arange(SIZE)[:, None], np.arange(SIZE)[None, :]
  stack = level.config.entropy_model
  expected_JS = (
    (j < s)
    & (s <= j + 1 + stack.num_layers * stack.window)
    & (document_S[:, None] == document_S[None, :])
  )
  real = document_S >= 0
  assert expected_JS[:, real].any()
  np.testing.assert_array_equal(
    (difference_JS > 0)[:, real], expected_JS[:, real]
  )


def test_appended_padding_changes_no_prediction(level, make_batch):
  short, long = make_batch([[21, 11]], 32), make_batch([[21, 11]], SIZE)
  np.testing.assert_allclose(
    level.entropy_logits(level.variables, long.ids_BS, long.document_BS)[
      :, :32
    ],
    level.entropy_logits(level.variables, short.ids_BS, short.document_BS),
    atol=1e-5,
  )


def test_a_row_alone_is_predicted_as_in_a_batch(level, make_batch):
  batch = make_batch([[21, 11], [40], [5, 5, 5]], SIZE)
  together = level.entropy_logits(
    level.variables, batch.ids_BS, batch.document_BS
  )
  for row in range(3):
    alone = level.entropy_logits(
      level.variables,
      batch.ids_BS[row : row + 1],
      batch.document_BS[row : row + 1],
    )
    np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_the_first_id_of_every_document_is_predicted_from_nothing(
  level, make_batch
):
  batch = make_batch([[9, 13, 7]], SIZE)
  logits = level.entropy_logits(
    level.variables, batch.ids_BS, batch.document_BS
  )
  assert logits.shape == (1, SIZE, VOCAB_SIZE)
  np.testing.assert_allclose(logits[0, 9], logits[0, 0], atol=1e-5)
  np.testing.assert_allclose(logits[0, 22], logits[0, 0], atol=1e-5)
  assert np.max(np.abs(logits[0, 1] - logits[0, 0])) > 1e-2
