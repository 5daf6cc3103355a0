"""Stacks of both forms: causality, gradients, steps with a cache, shapes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config.attention import AttentionConfig, StackConfig
from abstractinator.model.attention import FORMS
from abstractinator.model.transformer import (
  CodeMemory,
  Stack,
  TransformerBlock,
)
from tests.helpers.implementations import BY_NAME, XLA
from tests.helpers.jitted import init, jit, jit_to_numpy
from tests.helpers.relative_error import relative_error
from tests.helpers.remembering import remember_and_cross
from tests.helpers.streams import stream

WIDTH, HEADS, WINDOW, SIZE = 16, 2, 4, 24
ATTENTION = {
  'regular': AttentionConfig('regular', None, None, None),
  'mla': AttentionConfig('mla', kv_dim=6, query_dim=5, retrieval_dim=4),
}
# Documents of three rows, right-padded.
LENGTHS = ((3, 9, 7), (15,), (1, 1))

forms = pytest.mark.parametrize('form', ATTENTION)
# Masks are made alike for both forms.
forms_and_windows = pytest.mark.parametrize(
  ('form', 'window'),
  [
    ('mla', None),
    ('regular', WINDOW),
    pytest.param('mla', WINDOW, marks=pytest.mark.nightly),
    pytest.param('regular', None, marks=pytest.mark.nightly),
  ],
)


def make_stack(
  form, window, implementation='xla', dtype='float32', num_layers=2
):
  config = StackConfig(num_layers, HEADS, window, 24, ATTENTION[form])
  return Stack(config, WIDTH, BY_NAME[implementation], jnp.dtype(dtype))


def make_rows(seed=0):
  """Returns inputs and documents of three rows."""
  x = np.random.default_rng(seed).normal(size=(len(LENGTHS), SIZE, WIDTH))
  document = np.full((len(LENGTHS), SIZE), -1, np.int32)
  for row, lengths in enumerate(LENGTHS):
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    document[row, : len(numbers)] = numbers
  return jnp.asarray(x, jnp.float32), jnp.asarray(document)


@functools.cache
def variables_of(form, num_layers):
  """Returns variables, which depend on the form and number of blocks only."""
  stack = make_stack(form, WINDOW, num_layers=num_layers)
  return init(stack, jax.random.key(1), *make_rows())


class Compiled:
  """A stack, its variables, and its methods, each compiled once a shape."""

  def __init__(self, *args, **kwargs):
    self.stack = make_stack(*args, **kwargs)
    config = self.stack.config
    self.variables = variables_of(config.attention.form, config.num_layers)
    self.apply = jit_to_numpy(self.stack.apply)
    self.prefill = jit_to_numpy(self.stack.apply, method='prefill')
    self.step = jit_to_numpy(self.stack.apply, method='step')
    self.both = jit_to_numpy(self._both)

  def _both(self, variables, x, document, direction):
    """Returns the output, and gradients of its product with a direction."""
    out, pullback = jax.vjp(
      lambda v, x: self.stack.apply(v, x, document), variables, x
    )
    return out, pullback(direction)


compiled = functools.cache(Compiled)


def hold_gradient(function, *args):
  """Asserts that a gradient is the difference quotient along a direction."""

  def both(args, direction, cotangent):
    def at(distance):
      return function(
        *jax.tree.map(lambda x, d: x + distance * d, args, direction)
      )

    _, pullback = jax.vjp(function, *args)
    products = jax.tree.map(jnp.vdot, pullback(cotangent), direction)
    difference = (at(1e-2) - at(-1e-2)) / 2e-2
    return sum(jax.tree.leaves(products)), jnp.vdot(cotangent, difference)

  rng = np.random.default_rng(5)
  shape = jax.eval_shape(function, *args).shape
  # Every argument moves.
  direction = jax.tree.map(
    lambda x: jnp.float32(0.1 * rng.normal(size=x.shape)), args
  )
  cotangent = jnp.float32(rng.normal(size=shape))
  got, want = jit(both)(args, direction, cotangent)
  assert abs(want) > 0.1
  np.testing.assert_allclose(got, want, rtol=5e-3)


@forms_and_windows
@pytest.mark.parametrize('is_padded', [False, True])
def test_implementations_give_the_same(form, window, is_padded):
  x, document = make_rows()
  if not is_padded:
    document = jnp.zeros_like(document)
  is_real = np.asarray(document) >= 0
  direction = jnp.where(is_real[..., None], x[::-1], 0)
  results = []
  for implementation in ('reference', 'xla'):
    stack = compiled(form, window, implementation, num_layers=1)
    out, grads = stack.both(stack.variables, x, document, direction)
    results.append((np.asarray(out)[is_real], *grads))
  (want, *want_grads), (got, *got_grads) = results
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(
    jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.abs(b).max() > 1e-3


@forms_and_windows
def test_an_id_reads_no_later_id_nor_another_document(form, window):
  x, document = make_rows()
  stack = compiled(form, window)

  def run(x):
    return stack.apply(stack.variables, x, document)

  out = run(x)
  reach = SIZE if window is None else 2 * window
  for row, position in ((0, 5), (0, 11), (1, 3), (1, 14)):
    moved = np.abs(run(x.at[row, position].add(1.0)) - out).max(-1) > 0
    here = np.arange(SIZE)
    reads = (here >= position) & (here <= position + reach)
    reads &= np.asarray(document[row] == document[row, position])
    np.testing.assert_array_equal(moved[row], reads)
    assert not np.delete(moved, row, axis=0).any()


@forms_and_windows
def test_gradients_hold_numerically(form, window):
  x, document = make_rows()
  stack = compiled(form, window, num_layers=1)
  is_real = (document >= 0)[..., None]

  def run(variables, x):
    return jnp.where(is_real, stack.stack.apply(variables, x, document), 0)

  hold_gradient(run, stack.variables, x)


def streamed(stack, x, document, first):
  cache = stack.stack.init_cache(len(x), SIZE, jnp.float32)
  return stream(stack, x, document, first, cache)


@forms_and_windows
@pytest.mark.parametrize('first', [(0, 0, 0), (5, 11, 1), (19, 2, 2)])
def test_streaming_gives_what_the_whole_row_gives(form, window, first):
  """Rows of unequal lengths, several documents, far past the window."""
  x, document = make_rows()
  stack = compiled(form, window)
  want = stack.apply(stack.variables, x, document)
  got, cache = streamed(stack, x, document, first)
  is_real = np.asarray(document) >= 0
  np.testing.assert_allclose(got[is_real], want[is_real], atol=1e-5)
  np.testing.assert_array_equal(cache.length_B, is_real.sum(1))
  slots = SIZE if window is None else window + 1
  assert cache.group_BW.shape == (len(LENGTHS), slots)


@forms_and_windows
def test_rows_that_are_not_active_stay_as_they_are(form, window):
  x, document = make_rows()
  stack = compiled(form, window)
  _, cache = streamed(stack, x, document, (19, 15, 2))
  active = np.array([False, True, False])
  group = np.full(3, 7, np.int32)
  _, after = stack.step(stack.variables, x[:, 0], group, cache, active)
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True):
    np.testing.assert_array_equal(a[::2], b[::2])
    assert (np.asarray(a[1]) != np.asarray(b[1])).any()


@forms
def test_a_prefill_forgets_what_the_cache_held(form):
  x, document = make_rows()
  stack = compiled(form, WINDOW)
  cache = stack.stack.init_cache(len(x), SIZE, jnp.float32)
  used = jax.tree.map(jnp.ones_like, cache)
  fresh, again = (
    jax.tree.leaves(stack.prefill(stack.variables, x, document, c))
    for c in (cache, used)
  )
  for a, b in zip(fresh, again, strict=True):
    np.testing.assert_array_equal(a, b)


@forms
def test_an_id_beyond_the_capacity_is_no_number(form):
  """NaN without a window, and only in the row that is full."""
  x, document = make_rows()
  stack = compiled(form, None)
  # Rows of 19, 15 and 2 ids; one more fits into the first.
  cache = stack.stack.init_cache(len(x), SIZE, jnp.float32)
  _, cache = stack.prefill(stack.variables, x, document, cache)
  length_B = jnp.array([SIZE - 1, SIZE, SIZE])
  cache = dataclasses.replace(cache, length_B=length_B)
  active = np.array([True, True, False])
  out, _ = stack.step(stack.variables, x[:, 0], document[:, 0], cache, active)
  np.testing.assert_array_equal(np.isnan(out).all(1), [False, True, False])
  small = stack.stack.init_cache(len(x), 15, jnp.float32)
  with pytest.raises(ValueError, match=r'24 ids, allowed: .* \(15\)'):
    stack.prefill(stack.variables, x, document, small)


@forms
def test_a_cache_holds_bfloat16(form):
  x, document = make_rows()
  stack = compiled(form, WINDOW, dtype='bfloat16', num_layers=1)
  cache = stack.stack.init_cache(len(x), SIZE, jnp.bfloat16)
  args = (x[:, 0].astype(jnp.bfloat16), document[:, 0], cache)
  out, cache = stack.step(stack.variables, *args, np.ones(3, bool))
  types = {leaf.dtype for leaf in jax.tree.leaves(cache.layers)}
  assert types == {jnp.dtype('bfloat16')}
  assert out.dtype == jnp.bfloat16
  exact = compiled(form, WINDOW, num_layers=1)
  want = exact.apply(exact.variables, x, document)[:, 0]
  assert relative_error(out, want) < 0.015


def make_cross(form, implementation):
  return FORMS[form](
    WIDTH, HEADS, 6, 2, ATTENTION[form], BY_NAME[implementation], jnp.float32
  )


@functools.cache
def compiled_cross(form, implementation, lookback):
  """Returns the init, the call, and the call with its pullback, compiled."""
  module = make_cross(form, implementation)
  at = dict(lookback=lookback, method=remember_and_cross)

  def both(variables, x, memory, *where):
    def call(*args):
      return module.apply(*args, *where, **at)

    out, pullback = jax.vjp(call, variables, x, memory)
    return out, pullback(jnp.cos(out + 1))

  return (
    jit(module.init, **at),
    functools.partial(module.apply, **at),
    jit_to_numpy(both),
  )


@pytest.mark.parametrize(
  ('form', 'lookback'),
  [
    ('mla', 2),
    ('regular', 0),
    pytest.param('mla', 0, marks=pytest.mark.nightly),
    pytest.param('regular', 2, marks=pytest.mark.nightly),
  ],
)
@pytest.mark.parametrize('is_padded', [False, True])
def test_cross_attention_in_both_implementations(form, lookback, is_padded):
  rng = np.random.default_rng(2)
  x = jnp.float32(rng.normal(size=(2, 9, WIDTH)))
  memory = jnp.float32(rng.normal(size=(2, 5, 7)))
  index = np.array([[0, 0, 1, 1, 2, 3, 3, 4, 4], [0, 1, 2, 2, 3, 3, 4, 4, 4]])
  lowest = np.array([[0, 0, 0, 0, 2, 2, 2, 2, 2], [0] * 9])
  if is_padded:
    index = np.where(np.arange(9) < 6, index, -1)
  index, lowest = jnp.asarray(index), jnp.asarray(lowest)
  results = []
  init, *_ = compiled_cross(form, 'xla', lookback)
  variables = init(jax.random.key(0), x, memory, index, lowest)
  for implementation in ('reference', 'xla'):
    _, call, both = compiled_cross(form, implementation, lookback)
    out, grads = both(variables, x, memory, index, lowest)
    results.append((out, grads))
    np.testing.assert_array_equal(out[index < 0], 0)
    np.testing.assert_array_equal(grads[1][index < 0], 0)
    # Codes that are not visible are not read.
    moved = memory.at[0, 1].add(1.0)
    other, _ = both(variables, x, moved, index, lowest)
    moved = np.abs(other - out).max(-1)
    reads = (index[0] >= 1) & (index[0] - lookback <= 1) & (lowest[0] <= 1)
    np.testing.assert_array_equal(moved[0] > 0, reads)
    assert not np.any(moved[1])
  if not is_padded:
    hold_gradient(
      lambda *args: call(*args, index, lowest), variables, x, memory
    )
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@forms
def test_scores_of_segments_depend_on_their_distance_alone(form):
  """Shifting both sides by as many segments changes nothing."""
  rng = np.random.default_rng(2)
  x = jnp.float32(rng.normal(size=(1, 4, WIDTH)))
  memory = jnp.float32(rng.normal(size=(1, 4, 7)))
  index = jnp.array([[0, 1, 2, 3]])
  module = make_cross(form, 'xla')
  args = dict(lookback=3, method=remember_and_cross)
  variables = jit(module.init, **args)(
    jax.random.key(0), x, memory, index, index * 0
  )
  run = jit(module.apply, **args)
  out = run(variables, x, memory, index, index * 0)
  later = jnp.pad(memory, ((0, 0), (9, 0), (0, 0)))
  shifted = run(variables, x, later, index + 9, index * 0 + 9)
  np.testing.assert_allclose(shifted, out, atol=1e-5)


@forms
@pytest.mark.parametrize('lookback', [None, 0, 2])
def test_parameters_are_those_of_what_is_called(form, lookback):
  has_cross = lookback is not None
  block = TransformerBlock(
    StackConfig(2, HEADS, WINDOW, 24, ATTENTION[form]),
    WIDTH,
    WINDOW,
    XLA,
    jnp.float32,
    has_cross=has_cross,
    lookback=lookback or 0,
  )
  x, document = make_rows()
  memory = CodeMemory(x[:, :5], document, jnp.zeros_like(document))
  args = (x, document, memory if has_cross else None)
  params = jax.eval_shape(lambda: block.init(jax.random.key(0), *args))
  params = params['params']
  shapes = {
    'regular': {'qkv': (16, 3, 2, 8), 'out': (2, 8, 16)},
    'mla': {
      'q': (16, 2, 8),
      'query_down': (2, 8, 5),
      'query_up': (2, 5, 4),
      'kv': (16, 6),
      'k': (6, 2, 4),
      'value_up': (2, 6, 8),
      'out': (2, 8, 16),
    },
  }
  cross = {
    'regular': {'v': (16, 2, 8), 'out': (2, 8, 16)},
    'mla': {k: shapes['mla'][k] for k in ('kv', 'value_up', 'out')},
  }
  cross_with_lookback = {
    'regular': cross['regular'] | {'q': (16, 2, 8), 'k': (16, 2, 8)},
    'mla': shapes['mla'],
  }

  def found(name):
    return {k: v['kernel'].shape for k, v in params[name].items()}

  assert found('attention') == shapes[form]
  assert ('cross' in params) == has_cross
  if has_cross:
    want = cross_with_lookback if lookback else cross
    assert found('cross') == want[form]


def test_latent_scores_start_at_unit_scale():
  """Queries and keys have unit variance; scores are divided by sqrt(r)."""
  config = AttentionConfig('mla', kv_dim=64, query_dim=64, retrieval_dim=16)
  module = FORMS['mla'](128, 2, 64, 1, config, XLA, jnp.float32)
  x = jax.random.normal(jax.random.key(0), (4, 64, 128))
  position = jnp.arange(64)
  variables = jit(module.init, method='project')(jax.random.key(1), x, position)
  q, k, v = jit(module.apply, method='project')(variables, x, position)
  assert module.scale == 0.25
  for part in (q, k, v):
    assert 0.7 < float(jnp.std(part)) < 1.3
