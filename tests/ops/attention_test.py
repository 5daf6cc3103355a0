"""Attention by XLA and to a cache, held against the dense form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from abstractinator.ops.attention import attention, cached_attention
from tests.helpers.jitted import jit

BOTH = ['reference', 'xla']
ROWS, HEADS, WIDTH, VALUE_WIDTH = 3, 2, 6, 4
# How ids fall into groups; see `make_groups`.
KINDS = ['one', 'single ids', 'padding', 'documents', 'holes']


def make_inputs(size, key_heads=HEADS, value_heads=HEADS):
  """Queries, keys and values of a standard normal distribution."""
  rng = np.random.default_rng(0)
  q, k = (rng.normal(size=(ROWS, size, HEADS, WIDTH)) for _ in range(2))
  v = rng.normal(size=(ROWS, size, HEADS, VALUE_WIDTH))
  return q, k[:, :, :key_heads], v[:, :, :value_heads]


def make_groups(kind, size):
  """[ROWS, S] of groups that differ from row to row."""
  rng = np.random.default_rng(1)
  if kind == 'one':
    return np.zeros((ROWS, size), np.int32)
  if kind == 'single ids':
    return np.tile(np.arange(size), (ROWS, 1)).astype(np.int32)
  if kind == 'padding':
    # A padded row, an empty row and a row of a single id.
    real = np.array([[size // 2], [0], [1]])
    return np.where(np.arange(size) < real, 0, -1).astype(np.int32)
  group = np.cumsum(rng.random((ROWS, size)) < 0.1, axis=1)
  if kind == 'holes':
    group = np.where(rng.random((ROWS, size)) < 0.3, -1, group)
  return group.astype(np.int32)


def at(implementation, group, window, scale=WIDTH**-0.5):
  return functools.partial(
    attention,
    group_BS=jnp.asarray(group),
    window=window,
    scale=scale,
    implementation=implementation,
  )


@functools.cache
def with_group(implementation, window):
  """Returns a function that is compiled once, whatever the groups."""
  return lambda q, k, v, group: at(implementation, group, window)(q, k, v)


@pytest.fixture
def hold_xla(hold_against):
  """Holds XLA against the reference: values and gradients."""

  def check(args, kind, window, dtype='float32'):
    group = make_groups(kind, args[0].shape[1])
    functions = (with_group(name, window) for name in BOTH[::-1])
    hold_against(*functions, args, dtype, others=(group,))

  return check


@pytest.mark.parametrize(
  ('size', 'window', 'kind'),
  [
    (1, 5, 'one'),
    (37, 0, 'one'),
    (45, 500, 'documents'),
    *((70, 33, kind) for kind in KINDS),
    (128, 32, 'documents'),
    (1, None, 'one'),
    (128, None, 'holes'),
    *((150, None, kind) for kind in ('padding', 'documents', 'holes')),
    # Sizes, windows and groups that are above, in other pairs.
    *(
      pytest.param(*case, marks=pytest.mark.nightly)
      for case in [
        (67, 33, 'documents'),
        (97, 31, 'holes'),
        (129, None, 'padding'),
        (300, None, 'documents'),
        (1, 0, 'one'),
        (37, 1, 'documents'),
        (65, 32, 'one'),
        (70, 64, 'documents'),
        (131, 65, 'holes'),
        (33, 34, 'one'),
        (300, 129, 'one'),
        (301, 300, 'documents'),
        (37, None, 'documents'),
        (300, None, 'padding'),
      ]
    ),
  ],
)
def test_agrees_with_the_reference(hold_xla, size, window, kind):
  hold_xla(make_inputs(size), kind, window)


@pytest.mark.parametrize(('size', 'window'), [(70, 33), (150, None)])
def test_agrees_with_the_reference_at_large_scores(hold_xla, size, window):
  q, k, v = make_inputs(size)
  hold_xla((20 * q, k, v), 'documents', window)


@pytest.mark.parametrize(
  ('size', 'window', 'kind'),
  [(70, 33, 'documents'), (70, 33, 'padding'), (150, None, 'documents')],
)
def test_agrees_with_the_reference_in_bfloat16(hold_xla, size, window, kind):
  hold_xla(make_inputs(size), kind, window, 'bfloat16')


@pytest.mark.parametrize(
  ('key_heads', 'value_heads', 'window'),
  [
    (2, 1, None),
    (1, 2, 33),
    # Gradients of shared heads are summed alike with a window and without.
    *(
      pytest.param(*case, marks=pytest.mark.nightly)
      for case in [(2, 1, 33), (1, 2, None), (1, 1, 33), (1, 1, None)]
    ),
  ],
)
def test_heads_may_share_keys_or_values(
  hold_xla, window, key_heads, value_heads
):
  args = make_inputs(140, key_heads, value_heads)
  hold_xla(args, 'documents', window)
  # A shared head is the same as a copy of it for each head.
  wide = [jnp.broadcast_to(x, (*x.shape[:2], HEADS, x.shape[3])) for x in args]
  run = jit(at('reference', make_groups('documents', 140), window))
  np.testing.assert_allclose(
    run(*map(jnp.float32, args)), run(*map(jnp.float32, wide)), atol=1e-6
  )


@pytest.mark.parametrize('factor', [1, 8])
def test_full_causal_gradients_hold_numerically(factor):
  """Against differences, with blocks of queries that see earlier ones."""
  group = make_groups('holes', 150)[:1]
  q, k, v = (jnp.float32(x[:1]) for x in make_inputs(150, 2, 1))
  check_grads(
    jax.jit(at('xla', group, None)),
    (factor * q / 4, k, v),
    order=1,
    modes=['rev'],
    atol=1e-2,
    rtol=1e-2,
  )


@pytest.mark.parametrize('window', [None, 7])
@pytest.mark.parametrize('implementation', BOTH)
def test_ids_of_no_group_get_zeros_and_zero_gradients(implementation, window):
  group = make_groups('holes', 40)
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs(40)]

  @jit
  def run(*args):
    out, pullback = jax.vjp(at(implementation, group, window), *args)
    return out, pullback(jnp.ones_like(out))

  out, grads = run(*args)
  is_out = group < 0
  assert is_out.any()
  assert (~is_out).any()
  np.testing.assert_array_equal(out[is_out], 0)
  for grad in grads:
    np.testing.assert_array_equal(grad[is_out], 0)
    assert np.abs(grad[~is_out]).max() > 0


@pytest.mark.parametrize('implementation', BOTH)
def test_a_window_counts_the_ids_before_an_id(implementation):
  """Equal scores: each output is the mean of the values it sees."""
  size, window = 7, 2
  group = jnp.array([[0, 0, 0, 0, 1, 1, -1]])
  out = jit(at(implementation, group, window, scale=1.0))(
    jnp.zeros((1, size, 1, 2)),
    jnp.zeros((1, size, 1, 2)),
    jnp.eye(size)[None, :, None],
  )
  third = 1 / 3
  np.testing.assert_allclose(
    out[0, :, 0],
    [
      [1, 0, 0, 0, 0, 0, 0],
      [0.5, 0.5, 0, 0, 0, 0, 0],
      [third, third, third, 0, 0, 0, 0],
      [0, third, third, third, 0, 0, 0],
      [0, 0, 0, 0, 1, 0, 0],
      [0, 0, 0, 0, 0.5, 0.5, 0],
      [0, 0, 0, 0, 0, 0, 0],
    ],
    atol=1e-6,
  )


@pytest.mark.parametrize('window', [0, 3, 50])
def test_the_reference_agrees_with_jax(window):
  size = 23
  group = make_groups('documents', size)
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs(size)]
  position = np.arange(size)
  distance = position[:, None] - position[None, :]
  sees = (distance >= 0) & (distance <= window)
  sees = sees & (group[:, :, None] == group[:, None, :])
  # jax wants values as wide as keys.
  q, k, v = args
  wide = jnp.pad(v, ((0, 0),) * 3 + ((0, WIDTH - VALUE_WIDTH),))
  want = jit(
    jax.nn.dot_product_attention, mask=jnp.asarray(sees[:, None]), scale=0.3
  )(q, k, wide)
  np.testing.assert_allclose(
    jit(at('reference', group, window, scale=0.3))(q, k, v),
    want[..., :VALUE_WIDTH],
    atol=2e-6,
  )


def test_errors_name_what_is_allowed():
  args = [jnp.asarray(x, jnp.float32) for x in make_inputs(4)]
  group = make_groups('one', 4)
  with pytest.raises(ValueError, match=r"'flash'.*reference, xla"):
    at('flash', group, 1)(*args)
  with pytest.raises(ValueError, match=r'window: got -1, allowed: >= 0'):
    at('xla', group, -1)(*args)
  q, k, v = args
  with pytest.raises(ValueError, match=r'heads.*got 3, allowed: 1.*\(2\)'):
    at('xla', group, 1)(q, k, v[:, :, [0, 1, 1]])


@pytest.mark.parametrize('implementation', BOTH)
def test_a_window_of_everything_is_full_causal(implementation):
  group = make_groups('documents', 50)
  args = [jnp.float32(x) for x in make_inputs(50)]
  np.testing.assert_allclose(
    jit(at(implementation, group, None))(*args),
    jit(at(implementation, group, 49))(*args),
    atol=2e-6,
  )


def largest_array(jaxpr):
  """Numbers in the largest array of a jaxpr, inner ones included."""
  largest = 0
  for equation in jaxpr.eqns:
    for var in (*equation.invars, *equation.outvars):
      largest = max(largest, math.prod(getattr(var.aval, 'shape', ())))
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        largest = max(largest, largest_array(inner))
  return largest


@pytest.mark.parametrize('is_gradient', [False, True])
def test_full_causal_never_holds_the_square_of_the_sequence(is_gradient):
  size = 2048
  x = jax.ShapeDtypeStruct((1, size, 1, 8), jnp.float32)

  def largest(name):
    run = at(name, np.zeros((1, size), np.int32), None)
    if is_gradient:
      run = jax.grad(lambda *args, f=run: f(*args).sum(), (0, 1, 2))
    return largest_array(jax.make_jaxpr(run)(x, x, x).jaxpr)

  # Inputs and outputs, and one block of scores.
  assert largest('xla') <= max(size * 8, 128 * 128)
  assert largest('reference') >= size * size


# Slots that a cache's rows see: none, all, or some and the last.
SEES = np.stack(
  [np.zeros(33), np.ones(33), np.arange(33) % 3 == 2, np.arange(33) > 20]
).astype(bool)


def make_cached_inputs(key_heads, value_heads):
  rng = np.random.default_rng(2)
  rows, slots = SEES.shape
  return (
    rng.normal(size=(rows, HEADS, WIDTH)),
    rng.normal(size=(rows, key_heads, slots, WIDTH)),
    rng.normal(size=(rows, value_heads, slots, VALUE_WIDTH)),
  )


def of_the_last_id(q_BHA, k_BGWA, v_BGWE):
  """The dense form on rows whose last id has the query of the new id."""
  k, v = (x.swapaxes(1, 2) for x in (k_BGWA, v_BGWE))
  q = jnp.zeros((*k.shape[:2], HEADS, WIDTH)).at[:, -1].set(q_BHA)
  return at('reference', np.where(SEES, 0, -1), None, scale=0.4)(q, k, v)[:, -1]


to_cache = functools.partial(cached_attention, sees_BW=SEES, scale=0.4)


@pytest.mark.parametrize(
  ('heads', 'dtype'),
  [
    ((2, 2), 'float32'),
    ((2, 2), 'bfloat16'),
    ((2, 1), 'float32'),
    ((1, 2), 'float32'),
    # Heads are shared before anything is rounded.
    pytest.param((2, 1), 'bfloat16', marks=pytest.mark.nightly),
    pytest.param((1, 2), 'bfloat16', marks=pytest.mark.nightly),
  ],
)
def test_cached_attention_agrees_with_the_reference(hold_against, heads, dtype):
  hold_against(to_cache, of_the_last_id, make_cached_inputs(*heads), dtype)


def test_a_row_that_sees_no_slot_gets_zeros_and_zero_gradients():
  args = [jnp.float32(x) for x in make_cached_inputs(2, 2)]

  @jit
  def run(*args):
    out, pullback = jax.vjp(to_cache, *args)
    return out, *pullback(jnp.ones_like(out))

  for x in run(*args):
    np.testing.assert_array_equal(x[0], 0)
    assert np.abs(x[1:]).max() > 0
