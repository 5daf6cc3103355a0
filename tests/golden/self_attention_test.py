"""Self-attention against the original's numbers."""

import dataclasses
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
  OriginalBlock,
  form_of,
  hold,
  stored_tables,
)
from tests.helpers.golden_parts import (
  close,
  dense_attention,
  half_split,
)


def visible(golden):
  """Returns the mask of the original, [B, S, S] bool."""
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
  """Returns True for full regular attention with sdpa and a padding mask."""
  return (
    form_of(golden) == ('regular', 'sdpa')
    and 'window_size' not in golden.cfg
    and 'in/key_padding_mask' in golden.arrays
  )


def inverts_mask(golden):
  """Returns True for sliding latent attention with sdpa.

  The original takes the mask for its complement there, and ignores padding;
  files with `patched` have the right mask.
  """
  return (
    form_of(golden) == ('mla', 'sdpa')
    and 'window_size' in golden.cfg
    and not golden.cfg.get('patched', False)
  )


def is_ours(golden):
  """Returns True if the original's mask is causal, as ours is."""
  return not (loses_causality(golden) or inverts_mask(golden))


def padding(golden):
  nothing = np.zeros((golden.cfg['B'], golden.cfg['S']), bool)
  return golden.arrays.get('in/key_padding_mask', nothing)


def groups(golden):
  return jnp.asarray(np.where(padding(golden), -1, 0), jnp.int32)


def real_rows(golden):
  return golden.arrays['aux/row_has_allowed_key'] & ~padding(golden)


def use_op(monkeypatch, implementation, golden):
  """Puts an op with the original's mask in the place of ours, if dense."""
  if implementation == 'dense':
    op = dense_attention(
      jnp.asarray(visible(golden)), jnp.asarray(~padding(golden))
    )
    monkeypatch.setattr(attention_lib, 'attention', op)


def original_block(golden, p, implementation):
  """Returns the block of a file."""
  return OriginalBlock(
    p,
    golden.cfg['attention'],
    heads=golden.cfg['num_heads'],
    width=golden.cfg['dim'],
    window=golden.cfg.get('window_size'),
    implementation=implementation,
  )


@pytest.mark.golden('c0[12]_*')
@OPS
def test_golden_regular_self_attention(golden, implementation, monkeypatch):
  stored_tables(monkeypatch, golden)
  use_op(monkeypatch, implementation, golden)

  def block(p, x):
    return original_block(golden, p, implementation)(x, groups(golden))

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
    return original_block(golden, p, implementation)(x, groups(golden))

  if is_ours(golden) or implementation == 'dense':
    hold(block, golden, ['x'], real_rows(golden), 'inner.')
  else:
    with pytest.raises(AssertionError, match='Mismatched elements'):
      hold(block, golden, ['x'], real_rows(golden), 'inner.')


@pytest.mark.golden('c04_*', where=lambda x: 'n_prefill' in x.cfg)
def test_golden_latent_streaming(golden):
  """A ring of window + 1 slots replaces the growing cache of the original."""
  window, first = golden.cfg['window_size'], golden.cfg['n_prefill']
  p = {
    name.removeprefix('inner.'): jnp.asarray(x)
    for name, x in golden.group('param').items()
  }
  block = original_block(golden, p, 'xla')
  module, variables = block.module, block.variables
  x = jnp.asarray(golden.arrays['in/x'])
  normed = block.normed(x)
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
    return dataclasses.replace(cache, layers=(layer,)), out

  for t in range(first, size):
    cache, out = follow(cache, normed[:, t])
    outs.append(out)
  y = block.after(x, jnp.stack(outs, axis=1))
  close(y, golden.arrays['out/prefill_then_steps'], VALUE)
  # The ring holds the last slots of the original's cache.
  slots = np.arange(max(0, size - window - 1), size)
  held = np.asarray(cache.layers[0].value_BGWE)[:, 0, slots % (window + 1)]
  close(held, golden.arrays['out/cache_kv_c'][:, slots], VALUE)
  keys = np.asarray(cache.layers[0].key_BGWA)[:, :, slots % (window + 1)]
  want = half_split(golden.arrays['out/cache_k_r'], -1)
  close(keys, want[:, :, slots], VALUE)
