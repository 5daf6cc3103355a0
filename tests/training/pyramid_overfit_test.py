"""Two levels memorize a batch and decode it from the top codes alone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import RunConfig
from abstractinator.evaluation.coded_rows import code_rows
from abstractinator.evaluation.reconstruction import free_running_counts
from abstractinator.runs.state import variables_of
from abstractinator.training.program import make_program
from abstractinator.types import EOS_ID, NUM_BYTES, Batch
from configs import default, tiny

STEPS, ROWS, SIZE = 700, 2, 64
TEXT = (
  b'a code of codes says what the words below it say; and the words say what'
  b' their letters are, one level after the other, all the way down to these.'
)


def text_batch() -> Batch:
  """Rows of text, the second of two documents and padding."""
  ids = np.frombuffer(TEXT[: ROWS * SIZE], np.uint8).astype(np.int32)
  ids = ids.reshape(ROWS, SIZE).copy()
  document = np.zeros_like(ids)
  ids[0, -1] = EOS_ID
  ids[1, 29], document[1, 30:] = EOS_ID, 1
  ids[1, 57], document[1, 58:] = EOS_ID, -1
  ids[1, 58:] = NUM_BYTES + 2
  return Batch(*map(jnp.asarray, (ids, document, np.arange(ROWS))))


def run_config() -> RunConfig:
  values = tiny.get_config()
  values.data.sequence_length = SIZE
  (bottom,), upper = values.model.levels, default.get_upper_level()
  # A model that has memorized a text is uncertain nowhere, so the text is cut
  # at words, and in pairs of words, instead of by entropy.
  bottom.segmentation.rule = 'space'
  bottom.segmentation.threshold = 0.0
  upper.segmentation.rule = 'stride'
  upper.segmentation.threshold = 2.0
  upper.d_model = 32
  for part in (upper.entropy_model, upper.encoder, upper.expander):
    part.num_layers, part.num_heads, part.ffn_dim = 1, 2, 64
  upper.pooling.num_heads = 2
  for level in (bottom, upper):
    level.segmentation.target_length = None
    level.quantizer.codebook_size = 64
    level.quantizer.code_dim = 16
  values.model.levels = (bottom, upper)
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


@pytest.mark.nightly
def test_the_top_codes_alone_give_the_text_back():
  config, batch = run_config(), text_batch()
  program = make_program(config, 'cpu', STEPS)

  def step(state, _):
    state, found = program.step(state, batch)
    return state, found.whole['loss_total'].total

  @jax.jit
  def train(key):
    return jax.lax.scan(step, program.init(key), length=STEPS)

  state, loss = train(jax.random.key(0))
  # From 10.1 to 0.4 nats an id.
  assert loss[-1] < 0.1 * loss[0]
  model, variables = program.model, variables_of(state)
  code = functools.partial(
    code_rows, model=model, substitutes=['true'], decode=True
  )
  rows = jax.device_get(jax.jit(code)(variables, batch))
  decoded, ids = rows.decoded, rows.ids_BS
  for row in range(ROWS):
    text = np.concatenate(
      [
        ids_L[:length]
        for ids_L, length in zip(
          decoded.ids_BPL[row], decoded.length_BP[row], strict=True
        )
      ]
    )
    np.testing.assert_array_equal(text, ids[row][ids[row] != NUM_BYTES + 2])
  right_B, total_B = free_running_counts(
    decoded, ids, rows.levels[-1].byte_slot_BS
  )
  assert right_B.sum() == total_B.sum() == np.sum(ids < 256)
  # There is about one top code for ten bytes.
  num_top = len(np.unique(np.asarray(decoded.rows.origin_BP[0])))
  assert 4 <= num_top <= 8
