"""A level memorizes a batch of text and decodes it from its codes alone."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abstractinator
from abstractinator.config import RunConfig
from abstractinator.evaluation.coded_rows import code_rows
from abstractinator.evaluation.reconstruction import free_running_counts
from abstractinator.ops import segmentation
from abstractinator.runs.state import variables_of
from abstractinator.training.program import make_program
from abstractinator.types import EOS_ID, NUM_BYTES, Batch
from configs import tiny

STEPS, ROWS, SIZE = 600, 4, 64
LOOKBACK = 1

QUANTIZERS = {
  'vq': dict(kind='vq', codebook_size=128),
  'rvq': dict(kind='rvq', depth=3, codebook_size=16),
  'fsq': dict(kind='fsq', levels=(8, 5, 5, 5)),
}

# `quantizer_test` lowers a loss in every run.
pytestmark = pytest.mark.nightly
quantizers = pytest.mark.parametrize('name', QUANTIZERS)


def text_batch() -> Batch:
  """Rows of this package's own source, the second of two documents."""
  path = pathlib.Path(abstractinator.__file__).parent / 'types.py'
  text = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32)
  ids = text[: ROWS * SIZE].reshape(ROWS, SIZE).copy()
  document = np.zeros_like(ids)
  ids[:, -1] = EOS_ID
  ids[1, 29], document[1, 30:] = EOS_ID, 1
  return Batch(*map(jnp.asarray, (ids, document, np.arange(ROWS))))


def run_config(quantizer) -> RunConfig:
  values = tiny.get_config()
  values.data.sequence_length = SIZE
  (level,) = values.model.levels
  # A model that has memorized a text is uncertain nowhere, so the text is cut
  # at words instead of by entropy.
  level.segmentation.rule = 'space'
  level.segmentation.target_length = None
  level.segmentation.threshold = 0.0
  level.expander.lookback = LOOKBACK
  for name, value in quantizer.items():
    level.quantizer[name] = value
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


@functools.cache
def overfitted(name):
  config, batch = run_config(QUANTIZERS[name]), text_batch()
  program = make_program(config, 'cpu', STEPS)

  @jax.jit
  def train(key):
    return jax.lax.scan(
      lambda state, _: program.step(state, batch),
      program.init(key),
      length=STEPS,
    )[0]

  state = train(jax.random.key(0))
  return program.model, variables_of(state), batch


@quantizers
def test_a_batch_is_learned_by_heart(name):
  model, variables, batch = overfitted(name)
  output = jax.jit(model.apply)(variables, batch).levels[0]
  is_right = output.expanded.best_BS == batch.ids_BS
  is_byte = batch.ids_BS < NUM_BYTES
  is_first = is_byte & output.compressed.segments.is_start_BS
  for mask in (is_byte, is_first):
    assert jnp.sum(is_right & mask) > 0.99 * jnp.sum(mask)
  # Segments are not single bytes.
  assert jnp.sum(is_byte) > 3 * jnp.sum(is_first)


@quantizers
def test_the_codes_alone_give_the_text_back(name):
  model, variables, batch = overfitted(name)
  code = functools.partial(
    code_rows, model=model, substitutes=['true'], decode=True
  )
  rows = jax.device_get(jax.jit(code)(variables, batch))
  right_B, total_B = free_running_counts(
    rows.decoded, rows.ids_BS, rows.levels[-1].byte_slot_BS
  )
  assert right_B.sum() > 0.99 * total_B.sum()


@quantizers
def test_a_code_reaches_its_segment_and_those_that_look_back_at_it(name):
  model, variables, batch = overfitted(name)

  @jax.jit
  def decoded(codes_BP, is_valid_BP, lowest_BP):
    decoded = model.apply(
      variables,
      codes_BP,
      is_valid_BP,
      lowest_BP,
      sequence_length=SIZE,
      method='decode_all',
    )
    longest = decoded.ids_BPL.shape[-1]
    real = jnp.arange(longest) < decoded.length_BP[..., None]
    return jnp.where(real, decoded.ids_BPL, -1)

  @jax.jit
  def encoded():
    output = model.apply(variables, batch, method='compress_all')
    compressed = output.levels[0]
    codes_BP = compressed.quantized.codes_BP
    lowest_BS = segmentation.first_slots(compressed.segments, batch.document_BS)
    lowest_BP = segmentation.per_slot(
      lowest_BS, compressed.segments, codes_BP.shape[1]
    )
    return codes_BP, compressed.is_valid_BP, lowest_BP

  codes_BP, *rest = encoded()
  flipped, slot = 0, 3
  other = np.unique(codes_BP[2:])[:20]
  before = np.asarray(decoded(codes_BP, *rest))
  reached = np.zeros(before.shape[:2], bool)
  for code in other:
    after = decoded(codes_BP.at[flipped, slot].set(code), *rest)
    reached |= np.any(np.asarray(after) != before, axis=-1)
  may = np.zeros_like(reached)
  may[flipped, slot : slot + LOOKBACK + 1] = True
  assert reached[flipped, slot]
  assert not np.any(reached & ~may)
