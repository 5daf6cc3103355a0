"""Attention of ids to ids against the original's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model import attention as attention_lib
from abstractinator.ops import cache as cache_lib
from tests.helpers.golden_attention import (
  OPS,
  VALUE,
  form_of,
  hold,
  is_scaled,
  latent_block,
  latent_module,
  regular_block,
  stored_tables,
)
from tests.helpers.golden_parts import (
  close,
  dense_attention,
  half_split,
  latent_params,
  rms_norm,
  swiglu,
)


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


def padding(golden):
  nothing = np.zeros((golden.cfg['B'], golden.cfg['S']), bool)
  return golden.arrays.get('in/key_padding_mask', nothing)


def groups(golden):
  return jnp.asarray(np.where(padding(golden), -1, 0), jnp.int32)


def real_rows(golden):
  return golden.arrays['aux/row_has_allowed_key'] & ~padding(golden)


def use_op(monkeypatch, implementation, golden):
  """Our op, or one with the original's mask in its place."""
  if implementation == 'dense':
    op = dense_attention(
      jnp.asarray(visible(golden)), jnp.asarray(~padding(golden))
    )
    monkeypatch.setattr(attention_lib, 'attention', op)


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
  held = np.asarray(cache.layers[0].value_BGWE)[:, 0, slots % (window + 1)]
  close(held, golden.arrays['out/cache_kv_c'][:, slots], VALUE)
  keys = np.asarray(cache.layers[0].key_BGWA)[:, :, slots % (window + 1)]
  want = half_split(golden.arrays['out/cache_k_r'], -1)
  close(keys, want[:, :, slots], VALUE)
