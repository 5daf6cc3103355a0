import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops.segment_cross import segment_cross_attention

IMPLEMENTATIONS = ['gather', 'halo']
HEADS, WIDTH, VALUE_WIDTH = 2, 4, 3

# Own slot and lowest visible slot of each query, and how many slots there are.
LAYOUTS = {
  'one document': ([[0, 0, 1, 2, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]], 0, 8),
  'documents': (
    [[0, 0, 1, 2, 2, 3, 4, 5], [0, 1, 2, 3, 3, 3, 4, 4]],
    [[0, 0, 0, 2, 2, 2, 2, 5], [0, 1, 1, 1, 1, 1, 4, 4]],
    9,
  ),
  'padding': ([[0, 1, 1, 2, -1, -1, -1, -1], [-1] * 8], 0, 4),
  'slots short': ([[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 1, 2, 3, 9]], 0, 3),
  'fewer slots than lookback': ([[0] * 5 + [1] * 3, [0] * 4 + [-1] * 4], 0, 2),
}


def make_inputs(slots, queries=8, seed=0, rows_per_slot=1):
  rng = np.random.default_rng(seed)
  rows = slots * rows_per_slot
  return (
    rng.normal(size=(2, queries, HEADS, WIDTH)),
    rng.normal(size=(2, rows, HEADS, WIDTH)),
    rng.normal(size=(2, rows, HEADS, VALUE_WIDTH)),
  )


def at(implementation, index, lowest, lookback, scale=0.5, rows_per_slot=1):
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


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('lookback', [0, 1, 3])
@pytest.mark.parametrize('rows_per_slot', [1, 3])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_agrees_with_the_reference(
  hold_against, implementation, layout, rows_per_slot, lookback
):
  index, lowest, slots = LAYOUTS[layout]
  hold_against(
    at(implementation, index, lowest, lookback, rows_per_slot=rows_per_slot),
    at('reference', index, lowest, lookback, rows_per_slot=rows_per_slot),
    make_inputs(slots, rows_per_slot=rows_per_slot),
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize(
  ('lookback', 'rows_per_slot'), [(0, 1), (3, 1), (0, 2)]
)
def test_agrees_with_the_reference_in_bfloat16(
  hold_against, implementation, lookback, rows_per_slot
):
  index, lowest, slots = LAYOUTS['documents']
  hold_against(
    at(implementation, index, lowest, lookback, rows_per_slot=rows_per_slot),
    at('reference', index, lowest, lookback, rows_per_slot=rows_per_slot),
    make_inputs(slots, rows_per_slot=rows_per_slot),
    'bfloat16',
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_agrees_with_the_reference_at_large_scores(
  hold_against, implementation
):
  # Enough queries for some to be torn between slots: one that is not has
  # gradients that are small differences, and set no scale.
  index = np.sort(np.random.default_rng(3).integers(0, 90, (2, 300)), axis=1)
  q, k, v = make_inputs(90, queries=300)
  hold_against(
    at(implementation, index, 0, 3),
    at('reference', index, 0, 3),
    (20 * q, k, v),
  )


@pytest.mark.parametrize('implementation', ['reference', *IMPLEMENTATIONS])
def test_a_query_sees_its_slot_and_those_within_lookback_of_its_document(
  implementation,
):
  """Equal scores: each output is the mean of the values it sees."""
  index = [[0, 1, 2, 3, 3, 4, -1, 5]]
  lowest = [[0, 0, 0, 0, 3, 3, 3, 5]]
  out = at(implementation, index, lowest, 2)(
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


@pytest.mark.parametrize('implementation', ['reference', *IMPLEMENTATIONS])
@pytest.mark.parametrize('lookback', [0, 1])
def test_a_query_sees_every_row_of_a_slot(implementation, lookback):
  """Equal scores: the mean of the rows of its slot and of those before."""
  out = at(implementation, [[0, 1, 2, -1, 3]], 0, lookback, rows_per_slot=2)(
    jnp.zeros((1, 5, 1, 2)), jnp.zeros((1, 6, 1, 2)), jnp.eye(6)[None, :, None]
  )
  own = np.kron(np.eye(3), [[0.5, 0.5]])
  want = own if lookback == 0 else [own[0], own[:2].mean(0), own[1:].mean(0)]
  np.testing.assert_allclose(out[0, :3, 0], want, atol=1e-6)
  np.testing.assert_array_equal(out[0, 3:], 0)


def test_the_reference_agrees_with_jax(quick_jit):
  index, lowest, slots = LAYOUTS['documents']
  q, k, v = (jnp.asarray(x, jnp.float32) for x in make_inputs(slots))
  index, lowest = np.array(index)[..., None], np.array(lowest)[..., None]
  p = np.arange(slots)
  sees = (p <= index) & (p >= index - 2) & (p >= lowest)
  wide = jnp.pad(v, ((0, 0),) * 3 + ((0, WIDTH - VALUE_WIDTH),))
  want = quick_jit(
    functools.partial(
      jax.nn.dot_product_attention, mask=jnp.asarray(sees[:, None]), scale=0.3
    )
  )(q, k, wide)
  got = at('reference', index[..., 0], lowest[..., 0], 2, scale=0.3)
  np.testing.assert_allclose(
    quick_jit(got)(q, k, v),
    want[..., :VALUE_WIDTH],
    atol=2e-6,
  )


@pytest.mark.parametrize('implementation', ['reference', *IMPLEMENTATIONS])
def test_without_lookback_there_is_no_query_or_key(implementation):
  index, lowest, slots = LAYOUTS['padding']
  v = jnp.asarray(make_inputs(slots)[2], jnp.float32)
  out = at(implementation, index, lowest, 0)(None, None, v)
  for row in range(2):
    for query in range(8):
      slot = index[row][query]
      want = v[row, slot] if slot >= 0 else jnp.zeros_like(v[0, 0])
      np.testing.assert_array_equal(out[row, query], want)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize(('key_heads', 'value_heads'), [(2, 1), (1, 2), (1, 1)])
def test_heads_may_share_keys_or_values(
  hold_against, implementation, key_heads, value_heads
):
  index, lowest, slots = LAYOUTS['documents']
  q, k, v = make_inputs(slots)
  args = q, k[:, :, :key_heads], v[:, :, :value_heads]
  reference = at('reference', index, lowest, 2)
  hold_against(at(implementation, index, lowest, 2), reference, args)
  # A shared head is the same as a copy of it for each.
  wide = [np.broadcast_to(x, (*x.shape[:2], HEADS, x.shape[3])) for x in args]
  np.testing.assert_allclose(
    reference(*map(jnp.float32, args)),
    reference(*map(jnp.float32, wide)),
    atol=1e-6,
  )


def test_errors_name_what_is_allowed():
  index, lowest, slots = LAYOUTS['documents']
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs(slots)]
  with pytest.raises(ValueError, match=r"'xla'.*reference, gather, halo"):
    at('xla', index, lowest, 1)(*args)
  with pytest.raises(ValueError, match=r'lookback: got -1, allowed: >= 0'):
    at('gather', index, lowest, -1)(*args)
  for rows_per_slot in (0, 2):
    with pytest.raises(
      ValueError, match=rf'rows_per_slot: got {rows_per_slot}, .*rows \(9\)'
    ):
      at('gather', index, lowest, 1, rows_per_slot=rows_per_slot)(*args)
  q, k, v = args
  with pytest.raises(ValueError, match=r'heads.*got 3, allowed: 1.*\(2\)'):
    at('gather', index, lowest, 1)(q, k, v[:, :, [0, 1, 1]])
