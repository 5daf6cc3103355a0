"""Files whose numbers promise more than they hold, with right checksums."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from abstractinator.compression import container
from abstractinator.compression.coder import (
  PRECISION_BITS,
  RangeCoder,
  most_bytes,
)
from abstractinator.compression.container import (
  CODED,
  ENTROPY_MODEL,
  HIERARCHY,
  RAW,
  FileBlock,
  FileHeader,
  TextLanes,
)

SOUND = FileHeader(
  model=ENTROPY_MODEL,
  length=0,
  num_lanes=1,
  block_steps=65536,
  fingerprint=bytes(16),
  platform='jax',
)
FOUR = FileBlock(CODED, bytes(4), 0)
EMPTY = FileBlock(RAW, b'', 0)
GIB = 1 << 30


@pytest.mark.parametrize('model', [ENTROPY_MODEL, HIERARCHY])
@pytest.mark.parametrize(
  ('numbers', 'blocks', 'message'),
  [
    ({'length': 1 << 40, 'block_steps': 1}, [], r'got 0 blocks, allowed: 109'),
    ({'length': 5, 'num_lanes': 0}, [], 'got 0 lanes, allowed: 1 or more'),
    ({'block_steps': 0}, [], 'got 0 steps of a block, allowed: 1 or more'),
    ({'length': 5, 'num_lanes': 6}, [FOUR], 'got 6 lanes, allowed: at most 5'),
    (
      {'length': 64 * GIB, 'block_steps': 4 * GIB - 1},
      [EMPTY] * 17,
      'block 0 is damaged: got 0 stored bytes for 4294967295',
    ),
    (
      {'length': 4 * GIB - 1, 'block_steps': 4 * GIB - 1},
      [FOUR],
      'got 4 stored bytes for 4294967295',
    ),
    ({'length': 4}, [FileBlock(RAW, bytes(5), 0)], 'got 5 stored bytes for 4'),
    ({}, [EMPTY], 'got 1 blocks, allowed: 0'),
  ],
)
def test_numbers_that_the_file_cannot_hold_are_refused(
  model, numbers, blocks, message
):
  header = dataclasses.replace(SOUND, model=model, **numbers)
  content = container.pack(header, blocks)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=message):
      container.unpack(content)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('length', range(9))
@pytest.mark.parametrize('num_lanes', [1, 3, 8])
@pytest.mark.parametrize('block_steps', [1, 2])
def test_lanes_divide_a_text(length, num_lanes, block_steps):
  header = dataclasses.replace(
    SOUND, length=length, num_lanes=num_lanes, block_steps=block_steps
  )
  size = -(-length // num_lanes)
  lanes = TextLanes(header)
  lanes.text_N[:] = np.arange(length)
  found = []
  for steps in lanes.blocks:
    bytes_N = lanes.read_block(steps)
    assert header.num_bytes(steps) == len(bytes_N)
    found += bytes_N.tolist()
  assert found == [
    lane * size + step
    for step in range(size)
    for lane in range(num_lanes)
    if lane * size + step < length
  ]
  assert sum(map(lanes.num_active, range(size))) == length


def certain():
  """Returns frequencies that leave all other bytes as little as can be."""
  table_V = np.ones(256, np.int32)
  table_V[7] = (1 << PRECISION_BITS) - 255
  return table_V


def test_no_payload_holds_more_bytes_than_the_most():
  symbols_N = np.full(200_000, 7, np.int32)
  encoder = RangeCoder()
  encoder.code(certain(), symbols_N)
  payload = encoder.finish()
  # 200,000 bytes take 70 bits.
  assert len(payload) in (8, 12)
  assert most_bytes(len(payload)) > 200_000
  decoder = RangeCoder(payload)
  assert (decoder.code(certain(), 0 * symbols_N) == 7).all()
  assert most_bytes(4) < 300_000


@pytest.mark.parametrize('shared', [False, True])
def test_payloads_that_end_before_their_symbols_are_refused(shared):
  table_V = np.full(256, 1 << (PRECISION_BITS - 8), np.int32)
  table = table_V if shared else np.tile(table_V, (20, 1))
  symbols_N = np.random.default_rng(0).integers(0, 256, 20).astype(np.int32)
  encoder = RangeCoder()
  encoder.code(table, symbols_N)
  payload = encoder.finish()
  assert RangeCoder(payload).code(table, 0 * symbols_N).tolist() == list(
    symbols_N
  )
  with pytest.raises(ValueError, match='end before the symbols do'):
    RangeCoder(payload[:8]).code(table, 0 * symbols_N)
