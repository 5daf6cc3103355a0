"""Stacks of both forms: what sees what, and streaming against the whole row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from abstractinator.config import AttentionConfig, StackConfig
from abstractinator.modules.blocks import FORMS, Block, Stack

WIDTH, HEADS, WINDOW, SIZE = 16, 2, 4, 24
ATTENTION = {
  'regular': AttentionConfig('regular', None, None, None),
  'mla': AttentionConfig('mla', kv_dim=6, query_dim=5, retrieval_dim=4),
}
# Documents of three rows, right-padded.
LENGTHS = ((3, 9, 7), (15,), (1, 1))

forms = pytest.mark.parametrize('form', ATTENTION)
windows = pytest.mark.parametrize('window', [None, WINDOW])


def make_stack(form, window, implementation='xla', dtype='float32'):
  config = StackConfig(2, HEADS, window, 24, ATTENTION[form])
  return Stack(config, WIDTH, implementation, jnp.dtype(dtype))


def make_rows(seed=0):
  """Inputs and documents."""
  x = np.random.default_rng(seed).normal(size=(len(LENGTHS), SIZE, WIDTH))
  document = np.full((len(LENGTHS), SIZE), -1, np.int32)
  for row, lengths in enumerate(LENGTHS):
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    document[row, : len(numbers)] = numbers
  return jnp.asarray(x, jnp.float32), jnp.asarray(document)


def make_variables(stack):
  x, document = make_rows()
  return jax.jit(stack.init)(jax.random.key(1), x, document)


@forms
@windows
@pytest.mark.parametrize('is_padded', [False, True])
def test_implementations_give_the_same(form, window, is_padded):
  x, document = make_rows()
  if not is_padded:
    document = jnp.zeros_like(document)
  is_real = np.asarray(document) >= 0
  variables = make_variables(make_stack(form, window))
  direction = jnp.where(is_real[..., None], x[::-1], 0)
  results = []
  for implementation in ('reference', 'xla'):
    stack = make_stack(form, window, implementation)
    out, pullback = jax.vjp(
      jax.jit(lambda v, x, s=stack: s.apply(v, x, document)), variables, x
    )
    results.append((np.asarray(out)[is_real], *pullback(direction)))
  (want, *want_grads), (got, *got_grads) = results
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(
    jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.abs(b).max() > 1e-3


@forms
@windows
def test_an_id_reads_no_later_id_nor_another_document(form, window):
  x, document = make_rows()
  stack = make_stack(form, window)
  variables = make_variables(stack)
  run = jax.jit(lambda x: stack.apply(variables, x, document))
  out = run(x)
  reach = SIZE if window is None else 2 * window
  for row, position in ((0, 5), (0, 11), (1, 3), (1, 14)):
    moved = np.abs(run(x.at[row, position].add(1.0)) - out).max(-1) > 0
    here = np.arange(SIZE)
    reads = (here >= position) & (here <= position + reach)
    reads &= np.asarray(document[row] == document[row, position])
    np.testing.assert_array_equal(moved[row], reads)
    assert not np.delete(moved, row, axis=0).any()


@forms
@windows
def test_gradients_hold_numerically(form, window):
  x, document = make_rows()
  stack = make_stack(form, window)
  variables = make_variables(stack)
  is_real = (document >= 0)[..., None]
  check_grads(
    jax.jit(lambda v, x: jnp.where(is_real, stack.apply(v, x, document), 0)),
    (variables, x),
    order=1,
    modes=['rev'],
    atol=2e-2,
    rtol=2e-2,
  )


def stream(stack, variables, x, document, first, capacity=SIZE):
  """Prefills `first` ids of each row and steps through the others."""
  first = np.asarray(first)
  length = np.asarray((document >= 0).sum(1))
  begin = np.arange(SIZE) < first[:, None]
  cache = stack.init_cache(len(x), capacity, jnp.float32)
  prefill = jax.jit(
    lambda *args: stack.apply(variables, *args, method='prefill')
  )
  step = jax.jit(lambda *args: stack.apply(variables, *args, method='step'))
  size = max(first.max(), 1)
  out, cache = prefill(
    x[:, :size], jnp.where(begin, document, -1)[:, :size], cache
  )
  outs = np.array(jnp.pad(out, ((0, 0), (0, SIZE - size), (0, 0))))
  position = first.copy()
  while (position < length).any():
    active = position < length
    # What rows that are through are given must not matter.
    at = np.minimum(position, SIZE - 1)
    rows = np.arange(len(x))
    out, cache = step(x[rows, at], document[rows, at], cache, active)
    outs[rows[active], at[active]] = out[active]
    position = position + active
  return outs, cache


@forms
@windows
@pytest.mark.parametrize('first', [(0, 0, 0), (5, 11, 1), (19, 2, 2)])
def test_streaming_gives_what_the_whole_row_gives(form, window, first):
  """Rows of unequal lengths, several documents, far past the window."""
  x, document = make_rows()
  stack = make_stack(form, window)
  variables = make_variables(stack)
  want = jax.jit(stack.apply)(variables, x, document)
  got, cache = stream(stack, variables, x, document, first)
  is_real = np.asarray(document) >= 0
  np.testing.assert_allclose(got[is_real], want[is_real], atol=1e-5)
  np.testing.assert_array_equal(cache.length_B, is_real.sum(1))
  slots = SIZE if window is None else window + 1
  assert cache.group_BW.shape == (len(LENGTHS), slots)


@forms
@windows
def test_rows_that_are_not_active_stay_as_they_are(form, window):
  x, document = make_rows()
  stack = make_stack(form, window)
  variables = make_variables(stack)
  _, cache = stream(stack, variables, x, document, (19, 15, 2))
  _, after = stack.apply(
    variables,
    x[:, 0],
    document[:, 0],
    cache,
    jnp.array([False, True, False]),
    method='step',
  )
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True):
    np.testing.assert_array_equal(a[::2], b[::2])
    assert (np.asarray(a[1]) != np.asarray(b[1])).any()


@forms
def test_a_prefill_forgets_what_the_cache_held(form):
  x, document = make_rows()
  stack = make_stack(form, WINDOW)
  variables = make_variables(stack)
  cache = stack.init_cache(len(x), SIZE, jnp.float32)
  used = jax.tree.map(jnp.ones_like, cache)
  for a, b in zip(
    *(
      jax.tree.leaves(stack.apply(variables, x, document, c, method='prefill'))
      for c in (cache, used)
    ),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@forms
def test_an_id_beyond_the_capacity_is_no_number(form):
  """Without window; the other rows go on."""
  x, document = make_rows()
  stack = make_stack(form, None)
  variables = make_variables(stack)
  cache = stack.init_cache(len(x), 15, jnp.float32)
  _, cache = stack.apply(
    variables, x[:, :15], document[:, :15], cache, method='prefill'
  )
  out, _ = stack.apply(
    variables,
    x[:, 0],
    jnp.zeros(3, jnp.int32),
    cache,
    jnp.array([False, True, True]),
    method='step',
  )
  np.testing.assert_array_equal(np.isnan(out).all(1), [False, True, False])
  with pytest.raises(ValueError, match=r'24 ids, allowed: .* \(15\)'):
    stack.apply(variables, x, document, cache, method='prefill')


@forms
def test_a_cache_holds_bfloat16(form):
  x, document = make_rows()
  stack = make_stack(form, WINDOW, dtype='bfloat16')
  variables = make_variables(stack)
  cache = stack.init_cache(len(x), SIZE, jnp.bfloat16)
  out, cache = stack.apply(
    variables,
    x[:, 0].astype(jnp.bfloat16),
    document[:, 0],
    cache,
    jnp.ones(3, bool),
    method='step',
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(cache.layers)} == {
    jnp.dtype('bfloat16')
  }
  want = stack.apply(variables, x[:, :1], document[:, :1])[:, 0]
  np.testing.assert_allclose(*map(np.float32, (out, want)), atol=0.05)


def make_cross(form, lookback, implementation):
  return FORMS[form](
    WIDTH, HEADS, 6, 2, ATTENTION[form], implementation, jnp.float32
  )


@forms
@pytest.mark.parametrize('lookback', [0, 2])
@pytest.mark.parametrize('is_padded', [False, True])
def test_cross_attention_in_both_implementations(form, lookback, is_padded):
  rng = np.random.default_rng(2)
  x = jnp.float32(rng.normal(size=(2, 9, WIDTH)))
  memory = jnp.float32(rng.normal(size=(2, 5, 7)))
  index = np.array([[0, 0, 1, 1, 2, 3, 3, 4, 4], [0, 1, 2, 2, 3, 3, 4, 4, 4]])
  lowest = np.array([[0, 0, 0, 0, 2, 2, 2, 2, 2], [0] * 9])
  if is_padded:
    index = np.where(np.arange(9) < 6, index, -1)
  results = []
  for implementation in ('reference', 'xla'):
    module = make_cross(form, lookback, implementation)
    args = (jnp.asarray(index), jnp.asarray(lowest))

    def run(v, x, memory, module=module, args=args):
      return module.apply(
        v, x, memory, *args, lookback=lookback, method='cross'
      )

    variables = module.init(
      jax.random.key(0), x, memory, *args, lookback=lookback, method='cross'
    )
    # Deterministic: parameters do not depend on the implementation.
    out, pullback = jax.vjp(jax.jit(run), variables, x, memory)
    results.append((out, pullback(jnp.cos(out + 1))))
    np.testing.assert_array_equal(out[index < 0], 0)
    np.testing.assert_array_equal(pullback(out)[1][index < 0], 0)
    # What is not visible is not read.
    moved = run(variables, x, memory.at[0, 1].add(1.0)) - out
    reads = (index[0] >= 1) & (index[0] - lookback <= 1) & (lowest[0] <= 1)
    np.testing.assert_array_equal(np.abs(moved[0]).max(-1) > 0, reads)
    assert not np.any(moved[1])
  check_grads(
    jax.jit(run), (variables, x, memory), 1, ['rev'], atol=2e-2, rtol=2e-2
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
  module = make_cross(form, 3, 'xla')
  args = dict(lookback=3, method='cross')
  variables = module.init(
    jax.random.key(0), x, memory, index, index * 0, **args
  )
  out = module.apply(variables, x, memory, index, index * 0, **args)
  later = jnp.pad(memory, ((0, 0), (9, 0), (0, 0)))
  shifted = module.apply(variables, x, later, index + 9, index * 0 + 9, **args)
  np.testing.assert_allclose(shifted, out, atol=1e-5)


@forms
@pytest.mark.parametrize('lookback', [None, 0, 2])
def test_parameters_are_those_of_what_is_called(form, lookback):
  block = Block(
    WIDTH, HEADS, WINDOW, 24, 2, ATTENTION[form], 'xla', jnp.float32, lookback
  )
  x, document = make_rows()
  memory = (x[:, :5], document, jnp.zeros_like(document))
  params = jax.eval_shape(
    lambda: block.init(jax.random.key(0), x, document, memory=memory)
  )['params']
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
  assert ('cross' in params) == (lookback is not None)
  if lookback is not None:
    want = cross_with_lookback if lookback else cross
    assert found('cross') == want[form]


def test_latent_scores_start_at_unit_scale():
  """Queries and keys of unit variance, the division by sqrt(r) apart."""
  config = AttentionConfig('mla', kv_dim=64, query_dim=64, retrieval_dim=16)
  module = FORMS['mla'](128, 2, 64, 1, config, 'xla', jnp.float32)
  x = jax.random.normal(jax.random.key(0), (4, 64, 128))
  position = jnp.arange(64)
  variables = module.init(
    jax.random.key(1), x, jnp.zeros((4, 64), jnp.int32), window=8
  )
  q, k, v = module.apply(variables, x, position, method='project')
  assert module.scale == 0.25
  for part in (q, k, v):
    assert 0.7 < float(jnp.std(part)) < 1.3
