import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops.segment_cross import segment_cross_attention
from tests.helpers.jitted import jit
from tests.helpers.lowering import lowered

IMPLEMENTATIONS = ['gather', 'halo']
ALL = ['reference', *IMPLEMENTATIONS]
HEADS, WIDTH, VALUE_WIDTH = 2, 4, 3
QUERIES, SLOTS = 300, 90


def make_rows():
  """Returns own and lowest visible slots of queries, hard in some way."""
  rng = np.random.default_rng(0)
  slot = np.cumsum(rng.random(QUERIES) < 0.25)
  document = np.cumsum(rng.random(QUERIES) < 0.02)
  lowest = [slot[document == n].min() for n in document]
  rows = [
    (slot, 0),
    (slot, lowest),
    (np.arange(QUERIES), 0),  # Slots run short.
    (np.full(QUERIES, 7), 5),
    (np.where(np.arange(QUERIES) < 140, slot, -1), 0),
    (np.full(QUERIES, -1), 0),
    (np.where(rng.random(QUERIES) < 0.3, -1, slot), 0),
    (np.where(np.arange(QUERIES) < 150, -1, slot), lowest),
  ]
  index = np.stack([index for index, _ in rows])
  lowest = np.stack([np.broadcast_to(x, QUERIES) for _, x in rows])
  return index.astype(np.int32), lowest.astype(np.int32)


INDEX, LOWEST = make_rows()


def make_inputs(slots=SLOTS, queries=QUERIES, rows=8, rows_per_slot=1):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(rows, queries, HEADS, WIDTH)),
    rng.normal(size=(rows, slots * rows_per_slot, HEADS, WIDTH)),
    rng.normal(size=(rows, slots * rows_per_slot, HEADS, VALUE_WIDTH)),
  )


def at(
  implementation,
  index=INDEX,
  lowest=LOWEST,
  lookback=3,
  scale=0.5,
  rows_per_slot=1,
):
  index = jnp.asarray(index, jnp.int32)
  lowest = jnp.broadcast_to(jnp.asarray(lowest, jnp.int32), index.shape)
  return lambda q, k, v: segment_cross_attention(
    q,
    k,
    v,
    index_BT=index,
    lowest_BT=lowest,
    lookback=lookback,
    scale=scale,
    implementation=implementation,
    rows_per_slot=rows_per_slot,
  )


@functools.cache
def on_rows(implementation, lookback, rows_per_slot):
  """Returns the same function each time, which is compiled once."""
  return at(implementation, lookback=lookback, rows_per_slot=rows_per_slot)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize(
  ('lookback', 'rows_per_slot', 'dtype'),
  [
    (0, 3, 'float32'),
    (3, 1, 'float32'),
    (3, 2, 'bfloat16'),
    # Nothing but numbers between those above.
    *(
      pytest.param(*case, marks=pytest.mark.nightly)
      for case in [
        (0, 1, 'float32'),
        (1, 1, 'float32'),
        (3, 2, 'float32'),
        (0, 1, 'bfloat16'),
      ]
    ),
  ],
)
def test_agrees_with_the_reference(
  hold_against, implementation, lookback, rows_per_slot, dtype
):
  options = lookback, rows_per_slot
  hold_against(
    on_rows(implementation, *options),
    on_rows('reference', *options),
    make_inputs(rows_per_slot=rows_per_slot),
    dtype,
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_agrees_with_the_reference_with_fewer_slots_than_lookback(
  hold_against, implementation
):
  index = [[0] * 5 + [1] * 3, [0] * 4 + [-1] * 4]
  hold_against(
    at(implementation, index, 0),
    at('reference', index, 0),
    make_inputs(slots=2, queries=8, rows=2),
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_agrees_with_the_reference_at_large_scores(
  hold_against, implementation
):
  # Large queries only: with large keys as well, every query sees one slot, and
  # gradients are small differences that set no scale.
  q, k, v = make_inputs()
  functions = (on_rows(name, 3, 1) for name in (implementation, 'reference'))
  hold_against(*functions, (20 * q, k, v))


@pytest.mark.parametrize('implementation', ALL)
def test_a_query_sees_its_slot_and_those_within_lookback_of_its_document(
  implementation,
):
  """Equal scores: each output is the mean of the values it sees."""
  index = [[0, 1, 2, 3, 3, 4, -1, 5]]
  lowest = [[0, 0, 0, 0, 3, 3, 3, 5]]
  out = jit(at(implementation, index, lowest, 2))(
    jnp.zeros((1, 8, 1, 2)), jnp.zeros((1, 5, 1, 2)), jnp.eye(5)[None, :, None]
  )
  third = 1 / 3
  np.testing.assert_allclose(
    out[0, :, 0],
    [
      [1, 0, 0, 0, 0],
      [0.5, 0.5, 0, 0, 0],
      [third, third, third, 0, 0],
      [0, third, third, third, 0],
      [0, 0, 0, 1, 0],
      [0, 0, 0, 0.5, 0.5],
      [0, 0, 0, 0, 0],
      [0, 0, 0, 0, 0],
    ],
    atol=1e-6,
  )


@pytest.mark.parametrize('implementation', ALL)
@pytest.mark.parametrize('lookback', [0, 1])
def test_a_query_sees_every_row_of_a_slot(implementation, lookback):
  """Equal scores: the mean of the rows of its slot and of those before."""
  run = at(implementation, [[0, 1, 2, -1, 3]], 0, lookback, rows_per_slot=2)
  out = jit(run)(
    jnp.zeros((1, 5, 1, 2)), jnp.zeros((1, 6, 1, 2)), jnp.eye(6)[None, :, None]
  )
  own = np.kron(np.eye(3), [[0.5, 0.5]])
  want = own if lookback == 0 else [own[0], own[:2].mean(0), own[1:].mean(0)]
  np.testing.assert_allclose(out[0, :3, 0], want, atol=1e-6)
  np.testing.assert_array_equal(out[0, 3:], 0)


def test_the_reference_agrees_with_jax():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in make_inputs())
  p = np.arange(SLOTS)
  index, lowest = INDEX[..., None], LOWEST[..., None]
  sees = (p <= index) & (p >= index - 2) & (p >= lowest) & (index < SLOTS)
  wide = jnp.pad(v, ((0, 0),) * 3 + ((0, WIDTH - VALUE_WIDTH),))
  want = jit(
    functools.partial(
      jax.nn.dot_product_attention, mask=jnp.asarray(sees[:, None]), scale=0.3
    )
  )(q, k, wide)
  got = jit(at('reference', lookback=2, scale=0.3))(q, k, v)
  is_seen = sees.any(-1)
  np.testing.assert_allclose(
    got[is_seen], want[..., :VALUE_WIDTH][is_seen], atol=2e-6
  )
  np.testing.assert_array_equal(got[~is_seen], 0)


@pytest.mark.parametrize('implementation', ALL)
def test_without_lookback_there_is_no_query_or_key(implementation):
  v = jnp.asarray(make_inputs()[2], jnp.float32)
  out = jit(at(implementation, lookback=0))(None, None, v)
  has_slot = (INDEX >= 0) & (INDEX < SLOTS)
  slot = np.where(has_slot, INDEX, 0)
  want = np.take_along_axis(np.asarray(v), slot[..., None, None], axis=1)
  want = np.where(has_slot[..., None, None], want, 0)
  np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(
  ('key_heads', 'value_heads', 'implementation'),
  [
    (2, 1, 'halo'),
    (1, 2, 'gather'),
    # A shared head is one that is broadcast, before either.
    *(
      pytest.param(*case, marks=pytest.mark.nightly)
      for case in [
        (2, 1, 'gather'),
        (1, 2, 'halo'),
        (1, 1, 'gather'),
        (1, 1, 'halo'),
      ]
    ),
  ],
)
def test_heads_may_share_keys_or_values(
  hold_against, implementation, key_heads, value_heads
):
  q, k, v = make_inputs()
  args = q, k[:, :, :key_heads], v[:, :, :value_heads]
  functions = (on_rows(name, 3, 1) for name in (implementation, 'reference'))
  hold_against(*functions, args)
  run = jit(at('reference'))
  # A shared head is the same as a copy of it for each.
  wide = [np.broadcast_to(x, (*x.shape[:2], HEADS, x.shape[3])) for x in args]
  np.testing.assert_allclose(
    run(*map(jnp.float32, args)), run(*map(jnp.float32, wide)), atol=1e-6
  )


def test_halo_gives_zeros_to_what_it_does_not_reach():
  """Outside its contract: slots that jump, or that decrease."""
  index = np.zeros((2, 256), int)
  index[0, 100:128] = 200  # Jump by 200 in a block of 128 queries.
  index[0, 128:] = 200
  index[1, :128], index[1, 64:100] = 5, 4  # Step back.
  index[1, 128:] = 5
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs(256, 256, rows=2)]
  got = np.asarray(jit(at('halo', index, 0))(*args))
  want = np.array(jit(at('reference', index, 0))(*args))
  assert np.abs(want).min(axis=(2, 3)).max() > 0
  want[0, 100:128] = want[1, 64:100] = 0
  np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_eight_devices_give_what_one_does(implementation):
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs()]

  def both(*args):
    out, pullback = jax.vjp(at(implementation), *args)
    return out, *pullback(jnp.cos(out))

  alone = jit(both)(*args)
  mesh = jax.make_mesh(
    (2, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  spec = jax.sharding.PartitionSpec(('data', 'fsdp'), None, 'tensor')
  with jax.set_mesh(mesh):
    split = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in args]
    split = jit(both)(*split)
  for a, b in zip(alone, split, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_lowers_without_the_device(implementation, platform):
  args = [jnp.asarray(x, jnp.bfloat16) for x in make_inputs()]

  def loss(*args):
    return at(implementation)(*args).astype(jnp.float32).sum()

  text = lowered(jax.grad(loss, (0, 1, 2)), *args, platform=platform)
  # No scores of every query and slot.
  assert f'{QUERIES}x{SLOTS}x' not in text
  assert 'custom_call' not in text


def test_errors_name_what_is_allowed():
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs()]
  with pytest.raises(ValueError, match=r"'xla'.*reference, gather, halo"):
    at('xla')(*args)
  with pytest.raises(ValueError, match=r'lookback: got -1, allowed: >= 0'):
    at('gather', lookback=-1)(*args)
  for rows_per_slot in (0, 4):
    with pytest.raises(
      ValueError, match=rf'rows_per_slot: got {rows_per_slot}, .*rows \(90\)'
    ):
      at('gather', rows_per_slot=rows_per_slot)(*args)
  q, k, v = args
  with pytest.raises(ValueError, match=r'heads.*got 3, allowed: 1.*\(2\)'):
    at('gather')(q, k, v[:, :, [0, 1, 1]])
