"""Decoding from codes alone against a loop of teacher-forced calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.decoding.choices import Told
from abstractinator.decoding.rows import (
  RowsState,
  decode_greedily,
  decode_rows,
)
from abstractinator.decoding.segments import KnownIds, SegmentCodes
from abstractinator.types import BOS_ID, EOS_ID, PAD_ID, Batch, Segments
from tests.helpers.jitted import jit
from tests.model.expander_test import LATENT

SIZE, SLOTS = 18, 14
# Codes of each row: more than its ids need, few, none.
COUNTS = (SLOTS, 4, 0)
BITS = {
  'segmentation__rule': 'equal_information',
  'segmentation__threshold': 12.0,
}
MLA = {'expander__attention__form': 'mla', **LATENT}
# Context, ends, lookback, other settings.
WIRINGS = {
  'segment-head': ('segment', 'head', 2, {}),
  'window-head': ('window', 'head', 0, {}),
  'full-head': ('full', 'head', 2, {}),
  'segment-entropy': ('segment', 'entropy', 0, {}),
  'window-entropy': ('window', 'entropy', 2, {}),
  'full-entropy': ('full', 'entropy', 0, BITS),
  'full-head-queries': ('full', 'head', 2, {'pooling__num_queries': 2}),
  'window-entropy-queries': (
    'window',
    'entropy',
    2,
    {'pooling__num_queries': 2},
  ),
  'full-head-mla': ('full', 'head', 2, MLA),
  'segment-entropy-mla': ('segment', 'entropy', 0, MLA),
  'full-head-code_dim': ('full', 'head', 0, {'expander__code_dim': 6}),
}
# Each context, way to end, form and number of codes is in one of these.
ALWAYS = (
  'segment-head',
  'window-entropy-queries',
  'full-head-mla',
)


@pytest.fixture(
  scope='module',
  params=[
    *ALWAYS,
    *(
      pytest.param(name, marks=pytest.mark.nightly)
      for name in WIRINGS
      if name not in ALWAYS
    ),
  ],
)
def level(request, tiny_level):
  context, ends, lookback, changes = WIRINGS[request.param]
  return tiny_level(
    expander__context=context,
    expander__ends=ends,
    expander__lookback=lookback,
    # Only ends by entropy ask the entropy model.
    **({'entropy_model__num_layers': 2} if ends == 'entropy' else {}),
    **changes,
  )


def memories(level, seed=3):
  rng = np.random.default_rng(seed)
  num_codes = SLOTS * level.config.pooling.num_queries
  shape = (len(COUNTS), num_codes, level.config.d_model)
  return jnp.asarray(2 * rng.normal(size=shape), jnp.float32)


def is_valid():
  return jnp.arange(SLOTS) < jnp.array(COUNTS)[:, None]


def decoder(level):
  decode = jit(
    level.model.apply,
    method=lambda m, memory, valid, lowest: decode_greedily(
      m, SegmentCodes(m.expander.remember(memory), lowest), valid, SIZE
    ),
  )

  def run(variables, memory_BUD):
    lowest = jnp.zeros((len(COUNTS), SLOTS), jnp.int32)
    return map(np.asarray, decode(variables, memory_BUD, is_valid(), lowest))

  return run


def with_eos(level):
  """Variables that end documents every few ids.

  Not where codes are looked back at: how far they may be is given to decoding,
  in a call it follows from the documents.
  """
  params = jax.tree.map(lambda x: x, level.variables['params'])
  vocabulary = params['expander']['vocabulary']
  if 'head' in vocabulary:
    factor = 0.0 if level.config.expander.lookback else 2.5
    kernel = vocabulary['head']['kernel']
    vocabulary['head']['kernel'] = kernel.at[:, EOS_ID].multiply(factor)
  return level.variables | {'params': params}


def loop_decode(level, variables, memory_BUD):
  """Row by row in Python; every decision from a call on the ids so far."""
  rows = len(COUNTS)
  ids = np.zeros((rows, SIZE), np.int32)
  document = np.zeros((rows, SIZE), np.int32)
  starts = np.zeros((rows, SIZE), bool)
  is_done = np.array(COUNTS) == 0
  length = np.zeros(rows, np.int32)

  def expand():
    index = np.cumsum(starts, axis=1) - 1
    first = np.maximum.accumulate(np.where(starts, np.arange(SIZE), 0), axis=1)
    segments = Segments(
      index_BS=index,
      is_start_BS=starts,
      is_end_BS=starts,
      offset_BS=np.minimum(
        np.arange(SIZE) - first, level.config.segmentation.max_length - 1
      ),
      count_B=index[:, -1] + 1,
      is_capacity_bound_BS=np.zeros_like(starts),
    )
    args = jax.tree.map(jnp.asarray, (ids, document, segments, memory_BUD))
    return jax.device_get(level.expand(variables, *args))

  for t in range(SIZE):
    is_first = ids[:, t - 1] == EOS_ID if t else np.ones(rows, bool)
    before = document[:, t - 1] if t else np.full(rows, -1)
    document[:, t:] = (before + is_first)[:, None]
    if level.config.expander.ends == 'entropy':
      batch = Batch(*map(jnp.asarray, (ids, document, np.arange(rows))))
      segments = level.compress(variables, batch).segments
      assert not segments.is_capacity_bound_BS[:, : t + 1].any()
      opens = np.asarray(segments.is_start_BS)[:, t]
    elif t:
      output = expand()
      opens = output.end_logits_BS[:, t - 1] > 0
      opens |= output.end_is_certain_BS[:, t - 1]
    else:
      opens = is_first
    starts[:, t] = opens
    is_done |= np.sum(starts[:, : t + 1], axis=1) > np.array(COUNTS)
    logits = np.array(expand().logits[0][:, t])
    logits[:, [BOS_ID, PAD_ID]] = -np.inf
    ids[:, t] = np.argmax(logits, axis=-1)
    length += ~is_done
  return [
    [part.tolist() for part in np.split(ids[b, :n], np.flatnonzero(s[:n])[1:])]
    for b, (n, s) in enumerate(zip(length, starts, strict=True))
  ]


def test_decoding_equals_a_loop_of_teacher_forced_calls(level):
  variables, memory = with_eos(level), memories(level)
  ids, length = decoder(level)(variables, memory)
  want = loop_decode(level, variables, memory)
  for row, segments in enumerate(want):
    segments = segments if COUNTS[row] else []
    got = [
      ids[row, slot, : length[row, slot]].tolist()
      for slot in range(SLOTS)
      if length[row, slot]
    ]
    assert got == segments
    assert not length[row, len(segments) :].any()
  # A full row, one that its codes end, an empty one; lengths that differ.
  assert length[0].sum() == SIZE
  assert 0 < length[1].sum() < SIZE
  assert (length[1] > 0).sum() == COUNTS[1]
  assert len(set(np.ravel(length))) > 2
  flat = [i for row in want for segment in row for i in segment]
  assert len(set(flat)) > 8
  if level.config.expander.lookback:
    assert EOS_ID not in flat


@pytest.mark.parametrize('ends', ['head', 'entropy'])
def test_known_ids_cost_what_a_teacher_forced_call_says(tiny_level, ends):
  level = tiny_level(expander__context='full', expander__ends=ends)
  longest, num_known = level.config.segmentation.max_length, np.array([4, 2, 0])
  ids = np.random.default_rng(4).integers(0, 256, (len(COUNTS), longest))
  memory, lowest = memories(level)[:, :1], jnp.zeros((len(COUNTS), 1), int)

  def told(m):
    bos = jnp.full((len(COUNTS),), BOS_ID)
    known = KnownIds(jnp.asarray(ids), jnp.asarray(num_known), num_known)
    return decode_rows(
      m,
      RowsState(bos, m.expander.init_cache(len(COUNTS), longest), None),
      SegmentCodes(m.expander.remember(memory), lowest),
      jnp.ones(len(COUNTS), int),
      known.num_known_B + 1,
      Told(known),
      first_slot_B=jnp.zeros(len(COUNTS), int),
    )[0]

  decoded = jit(level.model.apply, method=told)(level.variables)
  index = np.zeros_like(ids)
  offset = np.broadcast_to(np.arange(longest), ids.shape)
  segments = Segments(
    index_BS=index,
    is_start_BS=offset == 0,
    is_end_BS=offset == longest - 1,
    offset_BS=offset,
    count_B=index[:, 0] + 1,
    is_capacity_bound_BS=index > 0,
  )
  args = jax.tree.map(jnp.asarray, (ids, index, segments, memory))
  want = level.expand(level.variables, *args)
  nats = want.nats_BS
  if ends == 'head':
    nats = nats + np.logaddexp(0, want.end_logits_BS)
  np.testing.assert_allclose(
    decoded.nats_BPL[:, 0],
    np.where(offset < num_known[:, None], nats, 0),
    rtol=1e-4,
    atol=1e-5,
  )
  # One id more than the known ones, which says no cost.
  np.testing.assert_array_equal(decoded.length_BP[:, 0], num_known + 1)


def test_a_code_changes_nothing_before_its_segment(level):
  decode, memory = decoder(level), memories(level)
  ids, length = decode(level.variables, memory)
  slot, queries = 2, level.config.pooling.num_queries
  # Of its codes, the last.
  changed = memory.at[:, queries * slot + queries - 1].multiply(-1.0)
  ids_after, length_after = decode(level.variables, changed)
  np.testing.assert_array_equal(ids[:, :slot], ids_after[:, :slot])
  if level.config.expander.ends == 'entropy':
    # Whether a segment goes on is known before its last id only.
    np.testing.assert_array_equal(length[:, :slot], length_after[:, :slot])
  assert (ids[:, slot:] != ids_after[:, slot:]).any()


@pytest.mark.parametrize('lookback', [0, 2])
def test_a_code_changes_what_looks_back_at_it_only(tiny_level, lookback):
  level = tiny_level(expander__context='segment', expander__lookback=lookback)
  memory, slot = memories(level), 1
  changed = memory.at[:, slot].multiply(-1.0)
  lowest = jnp.zeros((len(COUNTS), SLOTS), jnp.int32)
  at_once = [
    level.decode_segments(level.variables, m, lowest) for m in (memory, changed)
  ]
  (ids, length), (ids_after, length_after) = jax.device_get(at_once)
  is_other = (ids != ids_after).any(-1) | (length != length_after)
  may_see = (np.arange(SLOTS) >= slot) & (np.arange(SLOTS) <= slot + lookback)
  assert is_other[:, slot].all()
  assert not is_other[:, ~may_see].any()
  # One after the other they are the same, up to where a full row is cut.
  row_ids, row_length = decoder(level)(level.variables, memory)
  assert row_length[1, :4].tolist() == length[1, :4].tolist()
  for s in range(4):
    n = length[1, s]
    np.testing.assert_array_equal(row_ids[1, s, :n], ids[1, s, :n])


def test_slots_below_the_lowest_are_not_looked_at(tiny_level):
  level = tiny_level(expander__context='full', expander__lookback=2)
  decode = jit(
    level.model.apply,
    method=lambda m, memory, valid, lowest: decode_greedily(
      m, SegmentCodes(m.expander.remember(memory), lowest), valid, SIZE
    ),
  )
  memory = memories(level)
  own = jnp.broadcast_to(jnp.arange(SLOTS), (len(COUNTS), SLOTS))
  ids, length = decode(level.variables, memory, is_valid(), own)
  other, _ = decode(level.variables, memory, is_valid(), jnp.zeros_like(own))
  assert length[0].sum() == SIZE
  np.testing.assert_array_equal(ids[:, 0], other[:, 0])
  assert (ids != other).any()
