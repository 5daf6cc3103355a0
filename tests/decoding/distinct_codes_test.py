"""Segments that see the same codes are decoded once, and come back as such."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.decoding import lanes
from abstractinator.decoding.lanes import codes_in_sight, decode_distinct
from tests.helpers.greedy_lanes import decode_segments
from tests.helpers.jitted import jit, jit_to_numpy

ROWS, SLOTS = 3, 12


@pytest.mark.parametrize(
  ('lookback', 'queries'),
  [(1, 2)]
  + [
    pytest.param(*x, marks=pytest.mark.nightly)
    for x in ((0, 1), (0, 2), (1, 1))
  ],
)
def test_each_slot_gets_what_its_codes_become(
  tiny_level, monkeypatch, lookback, queries
):
  level = tiny_level(expander__lookback=lookback, pooling__num_queries=queries)
  rng = np.random.default_rng(1)
  # Few codes, 0 among them, which stands in empty slots as well.
  codes = rng.integers(0, 2, (ROWS, SLOTS, queries)).astype(np.int32)
  is_valid = np.arange(SLOTS) < np.array([[SLOTS - 3], [SLOTS], [2]])
  codes[~is_valid] = 0
  codes = codes.reshape(ROWS, -1)
  lowest = np.zeros((ROWS, SLOTS), np.int32)
  lowest[1, 5:] = 5
  decoded, decode_lanes = [], lanes.decode_lanes

  def spied(expander, codes, is_valid_BP, *args, **limits):
    decoded.append(is_valid_BP)
    return decode_lanes(expander, codes, is_valid_BP, *args, **limits)

  def both(m, codes, is_valid, lowest):
    found = decode_distinct(m, codes, is_valid, lowest)
    (is_decoded,) = decoded
    vectors = m.compressor.quantizer.lookup(codes)
    want = decode_segments(m.expander, vectors, is_valid, lowest)
    return found, want, is_decoded

  monkeypatch.setattr(lanes, 'decode_lanes', spied)
  run = jit(level.model.apply, method=both)
  (ids, length), (want_ids, want_length), is_decoded = jax.device_get(
    run(level.variables, codes, is_valid, lowest)
  )
  np.testing.assert_array_equal(length, want_length)
  is_kept = np.arange(ids.shape[-1]) < length[..., None]
  np.testing.assert_array_equal(ids[is_kept], want_ids[is_kept])
  seen = np.asarray(codes_in_sight(jnp.asarray(codes), lowest, lookback))
  sights = [
    tuple(seen[at]) if lookback == 0 else (at[0], *seen[at])
    for at in zip(*np.nonzero(is_valid), strict=True)
  ]
  assert is_decoded.sum() == len(set(sights)) < is_valid.sum()
  assert len(set(map(tuple, ids[is_valid]))) > 1


@pytest.mark.parametrize(
  ('lookback', 'groups'),
  [pytest.param(0, 4, marks=pytest.mark.nightly), (1, 8)],
)
def test_rows_of_a_device_are_decoded_together(
  tiny_level, monkeypatch, lookback, groups
):
  """On four devices as on one."""
  level = tiny_level(expander__lookback=lookback)
  codes = np.random.default_rng(2).integers(0, 9, (8, SLOTS)).astype(np.int32)
  is_valid = np.arange(SLOTS) < np.array([[1], [SLOTS], [5], [9]] * 2)
  shapes, decode_lanes = [], lanes.decode_lanes

  def spied(expander, codes, *args, **limits):
    shapes.append(codes.lowest_BP.shape)
    return decode_lanes(expander, codes, *args, **limits)

  def found(*args):
    run = functools.partial(level.model.apply, method=decode_distinct)
    return jit_to_numpy(run)(level.variables, *args)

  monkeypatch.setattr(lanes, 'decode_lanes', spied)
  args = codes, is_valid, np.zeros_like(codes)
  want = found(*args)
  mesh = jax.make_mesh(
    (2, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
  with jax.set_mesh(mesh):
    got = found(*(jax.device_put(x, rows) for x in args))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)
  alone = 1 if lookback == 0 else 8
  assert shapes == [(n, 8 * SLOTS // n) for n in (alone, groups)]
  assert len(set(want[1][is_valid])) > 1


@pytest.mark.parametrize('lookback', [0, 2])
@pytest.mark.parametrize('queries', [1, 3])
def test_what_a_segment_sees(lookback, queries):
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 9, (2, 6, queries)).astype(np.int32)
  lowest = np.array([[0] * 6, [0, 0, 2, 2, 4, 4]], np.int32)
  found = jit_to_numpy(
    lambda codes, lowest: codes_in_sight(codes, lowest, lookback)
  )(codes.reshape(2, -1), lowest)
  for row, slot in np.ndindex(2, 6):
    want = []
    for back in range(lookback + 1):
      there = slot - back >= lowest[row, slot]
      want += list(codes[row, slot - back]) if there else [-1] * queries
    np.testing.assert_array_equal(found[row, slot], want)
