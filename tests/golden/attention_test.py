"""Attention, rotary positions and SwiGLU against the original's numbers.

The original's weights are converted to our shapes, ours are differentiated with
respect to the original's, so that projections are held as well. What is built
differently on purpose is done here around our modules, in the original's way:
norms, biases, its residual wiring, and in regular attention its rotary tables,
which are rounded to bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config.attention import AttentionConfig
from abstractinator.modules import attention as attention_lib
from abstractinator.modules import latent_attention
from abstractinator.modules.attention import RegularAttention
from abstractinator.modules.latent_attention import LatentAttention
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.rope import rope_table, rotate
from tests.golden_parts import (
  close,
  dense_attention,
  half_split,
  latent_params,
  layer_norm,
  regular_cross_params,
  regular_params,
  rms_norm,
  swiglu,
  with_one,
)
from tests.implementations import BY_NAME

# Absolute, of values and of gradients.
VALUE, GRADIENT = 2e-5, 2e-4

# The reference is what ops are held against in their own tests.
REFERENCE = pytest.param('reference', marks=pytest.mark.nightly)
OPS = pytest.mark.parametrize('implementation', [REFERENCE, 'xla', 'dense'])
REGULAR = AttentionConfig('regular', None, None, None)


def hold(ours, golden, inputs, is_compared, prefix, values_only=False):
  """Holds `ours(params, *inputs)` against a file, with its gradients if any.

  Args:
    ours: Of the original's parameters and the inputs.
    golden: The file.
    inputs: Names of the differentiable inputs.
    is_compared: [B, T] bool, rows to compare.
    prefix: Of the names of parameters.
    values_only: Whether gradients are of something else.
  """
  params = {
    name.removeprefix(prefix): jnp.asarray(x)
    for name, x in golden.group('param').items()
  }
  arrays = [jnp.asarray(golden.arrays[f'in/{name}']) for name in inputs]
  out, pullback = jax.vjp(jax.jit(ours), params, *arrays)
  assert is_compared.any()
  close(out[is_compared], golden.arrays['out/y'][is_compared], VALUE)
  grads = golden.group('grad')
  if values_only or not grads:
    return
  got, *got_inputs = pullback(jnp.asarray(golden.arrays['cot/y']))
  for name, want in grads.items():
    close(got[name.removeprefix(prefix)], want, GRADIENT, name)
  for name, grad in zip(inputs, got_inputs, strict=True):
    close(grad, golden.arrays[f'grad_in/{name}'], GRADIENT, name)


def visible(golden):
  """[B, S, S] bool, what the original's mask lets through."""
  size = golden.cfg['S']
  distance = np.arange(size)[:, None] - np.arange(size)[None, :]
  sees = distance >= 0
  if 'window_size' in golden.cfg:
    sees = sees & (distance <= golden.cfg['window_size'])
  if loses_causality(golden):
    sees = np.ones_like(sees)
  if inverts_mask(golden):
    return ~sees[None]
  return sees[None] & ~padding(golden)[:, None]


def loses_causality(golden):
  """Full regular attention without flex does with any mask of padding."""
  return (
    form_of(golden) == ('regular', 'sdpa')
    and 'window_size' not in golden.cfg
    and 'in/key_padding_mask' in golden.arrays
  )


def inverts_mask(golden):
  """Sliding latent attention without flex does, but for files that mend it.

  The mask is taken for its complement, and padding is no part of it.
  """
  return (
    form_of(golden) == ('mla', 'sdpa')
    and 'window_size' in golden.cfg
    and not golden.cfg.get('patched', False)
  )


def is_ours(golden):
  """Whether the original's mask is the causal one, as ours."""
  return not (loses_causality(golden) or inverts_mask(golden))


def form_of(golden):
  form = golden.cfg['attention']
  return form['variant'], form['kernel']


def padding(golden):
  nothing = np.zeros((golden.cfg['B'], golden.cfg['S']), bool)
  return golden.arrays.get('in/key_padding_mask', nothing)


def groups(golden):
  return jnp.asarray(np.where(padding(golden), -1, 0), jnp.int32)


def real_rows(golden):
  return golden.arrays['aux/row_has_allowed_key'] & ~padding(golden)


def stored_tables(monkeypatch, golden, token_positions=False):
  """Uses the original's rotary tables, rounded to bfloat16, in our modules."""
  cos, sin = (golden.arrays[f'aux/rope_{x}'] for x in ('cos', 'sin'))

  def table(position, width):
    assert width == 2 * cos.shape[1]
    if token_positions and position.ndim == 2:
      position = jnp.arange(position.shape[1])
    return jnp.asarray(cos)[position], jnp.asarray(sin)[position]

  monkeypatch.setattr(attention_lib, 'rope_table', table)


def use_op(monkeypatch, implementation, golden):
  """Our op, or one with the original's mask in its place."""
  if implementation == 'dense':
    op = dense_attention(
      jnp.asarray(visible(golden)), jnp.asarray(~padding(golden))
    )
    monkeypatch.setattr(attention_lib, 'attention', op)


def regular_block(p, x, group_BS, *, heads, window, implementation):
  """A block of the original around our attention and SwiGLU."""
  width = x.shape[-1]
  module = RegularAttention(
    width + 1,
    heads,
    width // heads,
    1,
    REGULAR,
    BY_NAME[implementation],
    jnp.float32,
  )
  variables = regular_params(p, heads)
  normed = layer_norm(x, p['ln1.weight'], p['ln1.bias'])
  attended, _ = module.apply(
    variables, with_one(normed), group_BS, window=window
  )
  x = x + attended[..., :-1] + p['proj.bias']
  normed = layer_norm(x, p['ln2.weight'], p['ln2.bias'])
  return x + swiglu(p, 'mlp.0.', normed)


@pytest.mark.golden('c0[12]_*')
@OPS
def test_golden_regular_self_attention(golden, implementation, monkeypatch):
  stored_tables(monkeypatch, golden)
  use_op(monkeypatch, implementation, golden)

  def block(p, x):
    return regular_block(
      p,
      x,
      groups(golden),
      heads=golden.cfg['num_heads'],
      window=golden.cfg.get('window_size'),
      implementation=implementation,
    )

  prefix = (
    'inner.block.'
    if any('inner.block.' in name for name in golden.arrays)
    else 'inner.'
  )
  if is_ours(golden) or implementation == 'dense':
    hold(block, golden, ['x'], real_rows(golden), prefix)
  else:
    with pytest.raises(AssertionError, match='Mismatched elements'):
      hold(block, golden, ['x'], real_rows(golden), prefix)


def latent_module(golden, implementation):
  """Our module, of the width of the residual stream."""
  c = golden.cfg['attention']
  config = AttentionConfig(
    'mla', c['kv_comp_dim'], c['q_comp_dim'], c['retr_dim']
  )
  heads = golden.cfg.get('num_heads') or golden.cfg['n_heads']
  width = golden.cfg.get('dim') or golden.cfg['q_dim']
  return LatentAttention(
    width, heads, c['head_dim'], 1, config, BY_NAME[implementation], jnp.float32
  )


def is_scaled(form):
  """Whether scores of latent attention are, by the settings of attention."""
  return form['kernel'] != 'sdpa'


def latent_block(p, x, group_BS, golden, implementation):
  """A block of the original around our attention and SwiGLU."""
  module = latent_module(golden, implementation)
  window = golden.cfg.get('window_size')
  # A full block has one more linear map after the last; it is folded in.
  last = p['attn.o_proj.weight'] if window is None else None
  variables = latent_params(
    p,
    'attn.kv_proj.weight',
    'attn.mla.',
    is_scaled(golden.cfg['attention']),
    last,
  )
  normed = rms_norm(x, p['norm1.weight'])
  attended, _ = module.apply(variables, normed, group_BS, window=window)
  # The sliding block of the original goes on from the normalised stream.
  x = (x if window is None else normed) + attended
  return x + swiglu(p, 'ffn.', rms_norm(x, p['norm2.weight']))


@pytest.mark.golden(
  'c04_*', where=lambda x: x.cfg.get('factory', '').endswith('_self_block')
)
@OPS
def test_golden_latent_self_attention(golden, implementation, monkeypatch):
  use_op(monkeypatch, implementation, golden)

  def block(p, x):
    return latent_block(p, x, groups(golden), golden, implementation)

  if is_ours(golden) or implementation == 'dense':
    hold(block, golden, ['x'], real_rows(golden), 'inner.')
  else:
    with pytest.raises(AssertionError, match='Mismatched elements'):
      hold(block, golden, ['x'], real_rows(golden), 'inner.')


@pytest.mark.golden('c04_*', where=lambda x: 'n_prefill' in x.cfg)
def test_golden_latent_streaming(golden):
  """A ring of window + 1 slots does what their growing cache does."""
  module = latent_module(golden, 'xla')
  window, first = golden.cfg['window_size'], golden.cfg['n_prefill']
  p = {
    name.removeprefix('inner.'): jnp.asarray(x)
    for name, x in golden.group('param').items()
  }
  variables = latent_params(
    p, 'attn.kv_proj.weight', 'attn.mla.', is_scaled(golden.cfg['attention'])
  )
  x = jnp.asarray(golden.arrays['in/x'])
  normed = rms_norm(x, p['norm1.weight'])
  rows, size, _ = x.shape
  widths = module.cached_widths(
    module.num_heads, module.head_dim, module.config
  )
  cache = cache_lib.empty_cache(rows, window + 1, widths, 1, jnp.float32)
  group = jnp.zeros((rows, first), jnp.int32)
  prefill = jax.jit(functools.partial(module.apply, window=window))
  attended, key_values = prefill(variables, normed[:, :first], group)
  cache = cache_lib.fill(cache, [key_values], group)
  outs = list(jnp.moveaxis(attended, 1, 0))

  @jax.jit
  def follow(cache, x_BD):
    cache, step = cache_lib.advance(
      cache, jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool)
    )
    out, layer = module.apply(
      variables, x_BD, cache.layers[0], step, method='step'
    )
    return cache.replace(layers=(layer,)), out

  for t in range(first, size):
    cache, out = follow(cache, normed[:, t])
    outs.append(out)
  y = x + jnp.stack(outs, axis=1)
  y = y + swiglu(p, 'ffn.', rms_norm(y, p['norm2.weight']))
  close(y, golden.arrays['out/prefill_then_steps'], VALUE)
  # What the ring holds is the end of what the original holds.
  slots = np.arange(max(0, size - window - 1), size)
  held = np.asarray(cache.layers[0].value_BWGE)[:, slots % (window + 1), 0]
  close(held, golden.arrays['out/cache_kv_c'][:, slots], VALUE)
  keys = np.asarray(cache.layers[0].key_BWGA)[:, slots % (window + 1)]
  want = half_split(golden.arrays['out/cache_k_r'], -1)
  close(keys, jnp.moveaxis(want, 1, 2)[:, slots], VALUE)


def cross_visible(golden):
  """[B, T, P] bool, slots that the original lets through."""
  own = golden.arrays['in/seg_id'][..., None]
  slots = golden.cfg['Lkv']
  blocked = np.zeros((len(own), slots), bool)
  blocked = golden.arrays.get('in/kv_mask', blocked)
  slot = np.arange(slots)
  sees = (slot <= own) & (slot >= own - golden.cfg['lookback'])
  return sees & ~blocked[:, None]


def run_cross(golden, implementation, monkeypatch, make_ours, prefix):
  """Compares what our indices can say; with a dense op, everything."""
  sees = cross_visible(golden)
  own = golden.arrays['in/seg_id']
  is_real = ~golden.arrays.get('in/q_pad_mask', np.zeros(own.shape, bool))
  is_real = is_real & golden.arrays['aux/row_has_allowed_key']
  lowest = np.where(sees.any(-1), sees.argmax(-1), own + 1)
  values_only = False
  if implementation == 'dense':
    # Rows of padding are zeroed there, or have no gradient to compare.
    is_counted = is_real[..., None]
    if form_of(golden) == ('regular', 'flex'):
      is_counted = np.ones_like(is_counted)
    op = dense_attention(jnp.asarray(sees & is_counted))
    monkeypatch.setattr(attention_lib, 'segment_cross_attention', op)
  else:
    # Slots from the lowest to the own one, without holes.
    slot = np.arange(sees.shape[-1])
    said = (slot >= lowest[..., None]) & (slot <= own[..., None])
    is_said = (said == sees).all(-1)
    values_only = not (is_said | ~is_real).all() or 'in/kv_mask' in (
      golden.arrays
    )
    is_real &= is_said

  def ours(p, q, kv):
    module, variables = make_ours(p)
    return module.apply(
      variables,
      q,
      kv,
      jnp.asarray(own),
      jnp.asarray(lowest, jnp.int32),
      lookback=golden.cfg['lookback'],
      method='cross',
    )

  hold(ours, golden, ['q', 'kv'], is_real, prefix, values_only)


@pytest.mark.golden('c03_*')
@OPS
def test_golden_regular_cross_attention(golden, implementation, monkeypatch):
  stored_tables(monkeypatch, golden, token_positions=True)
  heads, width = golden.cfg['n_heads'], golden.cfg['d_attn']

  def make_ours(p):
    module = RegularAttention(
      golden.cfg['q_dim'],
      heads,
      width // heads,
      1,
      REGULAR,
      BY_NAME[implementation],
      jnp.float32,
    )
    return module, regular_cross_params(p, heads)

  has_flex = golden.cfg['attention']['kernel'] == 'flex'
  prefix = 'inner.' if has_flex else 'inner.inner.'
  run_cross(golden, implementation, monkeypatch, make_ours, prefix)


@pytest.mark.golden('c04_*', where=lambda x: 'lookback' in x.cfg)
@OPS
def test_golden_latent_cross_attention(golden, implementation, monkeypatch):
  # The original counts positions of queries in ids.
  monkeypatch.setattr(
    latent_attention,
    'rope_table',
    lambda position, width: rope_table(jnp.arange(position.shape[-1]), width),
  )

  def make_ours(p):
    variables = latent_params(
      p, 'kv_comp.weight', 'mla.', is_scaled(golden.cfg['attention'])
    )
    return latent_module(golden, implementation), variables

  run_cross(golden, implementation, monkeypatch, make_ours, 'inner.')


@pytest.mark.golden('c15_rope*')
def test_golden_rotary_positions(golden):
  position = jnp.asarray(golden.arrays['in/positions'])
  width = golden.cfg['head_dim']
  table = rope_table(position, width, base=golden.cfg['base'])
  # Angles are positions times a float32 frequency: up to 8191 radians.
  for got, name in zip(table, ('cos', 'sin'), strict=True):
    want = golden.arrays[f'out/{name}_f32']
    close(got, want, 1e-3, name)
    near = np.asarray(position) < 128
    close(got[near], want[near], VALUE, name)
  x = jnp.moveaxis(jnp.asarray(golden.arrays['in/x']), 1, 2)
  got = rotate(half_split(x, -1), rope_table(jnp.arange(x.shape[1]), width))
  want = jnp.moveaxis(golden.arrays['out/apply_f32'], 1, 2)
  close(got, half_split(want, -1), VALUE)


@pytest.mark.golden('c15_swiglu*')
def test_golden_swiglu(golden):
  rows = np.ones(golden.arrays['in/x'].shape[:2], bool)
  hold(lambda p, x: swiglu(p, '', x), golden, ['x'], rows, '')
