"""Segments that are decoded at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.decoding.pyramid import decode_level
from abstractinator.model.expander import DecoderOnlyExpanderRVQ
from abstractinator.ops import code_rows
from abstractinator.types import BOS_ID, NUM_BYTES, PAD_ID, Segments
from tests.helpers.greedy_lanes import decode_segments
from tests.helpers.implementations import XLA
from tests.helpers.jitted import jit
from tests.helpers.tiny_segments import (
  SLOTS,
  make_memory,
  make_row,
  num_codes,
  rows,
)


def loop_decode(level, memory_BUD, document_BP):
  """Greedy decoding by teacher-forced calls over the ids decoded so far."""
  batch, slots = document_BP.shape
  longest = level.config.segmentation.max_length
  size = slots * longest
  index = np.arange(size) // longest
  offset = np.arange(size) % longest
  segments = Segments(
    index_BS=rows(index, batch),
    is_start_BS=rows(offset == 0, batch),
    is_end_BS=rows(offset == longest - 1, batch),
    offset_BS=rows(offset, batch),
    count_B=jnp.full((batch,), slots),
    is_capacity_bound_BS=jnp.zeros((batch, size), bool),
  )
  ids = np.zeros((batch, slots, longest), np.int32)
  length = np.zeros((batch, slots), np.int32)

  def predict():
    output = level.expand(
      level.variables,
      jnp.asarray(ids.reshape(batch, size)),
      jnp.asarray(np.repeat(document_BP, longest, axis=1)),
      segments,
      memory_BUD,
    )
    return (
      np.array(output.logits[0]).reshape(*ids.shape, -1),
      np.asarray(output.end_logits_BS).reshape(ids.shape),
      np.asarray(output.end_is_certain_BS).reshape(ids.shape),
    )

  for step in range(longest):
    logits, _, _ = predict()
    logits[..., [BOS_ID, PAD_ID]] = -np.inf
    ids[..., step] = np.argmax(logits[:, :, step], axis=-1)
    _, ends, is_certain = predict()
    is_end = (ends[..., step] > 0) | is_certain[..., step]
    length = np.where((length == 0) & is_end, step + 1, length)
  return ids, length


@pytest.mark.parametrize(
  ('lookback', 'queries'),
  [(1, 3)]
  + [
    pytest.param(*x, marks=pytest.mark.nightly)
    for x in ((0, 1), (2, 1), (0, 2))
  ],
)
def test_decoding_at_once_equals_a_loop_of_teacher_forced_calls(
  tiny_level, lookback, queries
):
  level = tiny_level(
    expander__context='segment',
    expander__lookback=lookback,
    pooling__num_queries=queries,
  )
  rng = np.random.default_rng(5)
  memory = 2 * rng.normal(size=(2, num_codes(level), level.config.d_model))
  memory = memory.astype(np.float32)
  document = np.array(
    [[0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3], [0] * 6 + [1] * 5], np.int32
  )
  lowest = np.array(
    [[np.argmax(row == d) for d in row] for row in document], np.int32
  )
  ids, length = level.decode_segments(
    level.variables, jnp.asarray(memory), jnp.asarray(lowest)
  )
  want_ids, want_length = loop_decode(level, memory, document)
  np.testing.assert_array_equal(length, want_length)
  # Lengths differ, and so do ids: there was something to get wrong.
  assert len(set(np.ravel(length))) > 2
  assert len(set(np.ravel(ids))) > 10
  is_kept = np.arange(ids.shape[-1]) < np.asarray(length)[..., None]
  np.testing.assert_array_equal(
    np.where(is_kept, ids, -1), np.where(is_kept, want_ids, -1)
  )


def test_decoding_never_gives_bos_or_pad(tiny_level):
  """Heads that want nothing else still give bytes and EOS."""
  level = tiny_level()
  vocabulary = level.variables['params']['expander']['vocabulary']
  kernel = vocabulary['head']['kernel']
  wish = 1e3 * jnp.sign(jnp.sum(kernel, axis=1))
  eager = jnp.stack([wish, -wish], axis=1)
  params = dict(level.variables['params'])
  kernel = kernel.at[:, jnp.array([BOS_ID, PAD_ID])].set(eager)
  params['expander'] = params['expander'] | {
    'vocabulary': vocabulary | {'head': {'kernel': kernel}}
  }
  memory = np.stack([make_memory(level, seed) for seed in range(2)])
  ids, _ = level.decode_segments(
    level.variables | {'params': params},
    jnp.asarray(memory),
    jnp.zeros((2, SLOTS), jnp.int32),
  )
  assert not np.isin(ids, [BOS_ID, PAD_ID]).any()


def test_codes_decode_as_their_vectors_do(tiny_level):
  level = tiny_level()
  codes = jnp.arange(SLOTS)[None] % level.config.quantizer.codebook_size
  vectors = level.model.apply(
    level.variables, codes, method=lambda m, c: m.compressor.quantizer.lookup(c)
  )
  lowest = jnp.zeros((1, SLOTS), jnp.int32)
  decode = jit(level.model.apply, method=decode_level, sequence_length=9)
  is_valid = jnp.arange(SLOTS)[None] < SLOTS - 2
  rows = code_rows.top_rows(codes, is_valid, lowest)
  ids, length = decode(level.variables, rows)
  want_ids, want_length = level.decode_segments(
    level.variables, vectors, lowest
  )
  np.testing.assert_array_equal(length, jnp.where(is_valid, want_length, 0))
  is_kept = np.arange(ids.shape[-1]) < np.asarray(length)[..., None]
  np.testing.assert_array_equal(
    np.where(is_kept, ids, -1), np.where(is_kept, want_ids, -1)
  )


def test_digits_of_given_codebooks_are_predicted_and_decoded(tiny_config):
  """Ids have two digits, entries of codebooks that are given, as above."""
  config = tiny_config(expander__code_dim=6)
  expander = DecoderOnlyExpanderRVQ(
    config, (7, 5), XLA, jnp.float32, has_tables=False
  )
  rng = np.random.default_rng(0)
  codebooks = tuple(
    jnp.asarray(rng.normal(size=(size, 6)), jnp.float32) for size in (7, 5)
  )
  ids, document, segments = make_row()
  ids = np.where(ids < NUM_BYTES, ids % 35, ids - NUM_BYTES + 35)
  args = (
    rows(ids, 1),
    rows(document, 1),
    Segments(**{k: rows(v, 1) for k, v in vars(segments).items()}),
    rng.normal(size=(1, SLOTS, config.d_model)).astype(np.float32),
    None,
    codebooks,
  )
  output, variables = jit(expander.init_with_output)(jax.random.key(0), *args)
  assert [x.shape[-1] for x in output.logits] == [10, 5]
  assert set(variables['params']['vocabulary']) == {
    'kernel',
    'log_scale',
    'special',
  }
  real = document >= 0
  uniform = np.log(10) + np.log(5) * np.mean(ids[real] < 35)
  assert abs(float(output.nats_BS[0, real].mean()) - uniform) < 0.5
  decode = nn.apply(
    lambda m: decode_segments(
      m,
      args[3],
      jnp.ones((1, SLOTS), bool),
      jnp.zeros((1, SLOTS), jnp.int32),
      codebooks,
    ),
    expander,
  )
  decoded, _ = jit(decode)(variables)
  assert 0 <= int(decoded.min()) <= int(decoded.max()) <= 36
