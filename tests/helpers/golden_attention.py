"""How attention is held against the original's numbers.

The original's weights are converted to our shapes, ours are differentiated with
respect to the original's, so that projections are held as well. What is built
differently on purpose is done around our modules, in the original's way: norms,
biases, its residual wiring, and in regular attention its rotary tables, which
are rounded to bfloat16.
"""

import jax
import jax.numpy as jnp
import pytest

from abstractinator.config.attention import AttentionConfig
from abstractinator.model import attention as attention_lib
from abstractinator.model.attention import LatentAttention, RegularAttention
from tests.helpers.golden_parts import (
  close,
  latent_params,
  layer_norm,
  regular_params,
  rms_norm,
  swiglu,
  with_one,
)
from tests.helpers.implementations import BY_NAME

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


def form_of(golden):
  form = golden.cfg['attention']
  return form['variant'], form['kernel']


def stored_tables(monkeypatch, golden, token_positions=False):
  """Uses the original's rotary tables, rounded to bfloat16, in our modules."""
  cos, sin = (golden.arrays[f'aux/rope_{x}'] for x in ('cos', 'sin'))

  def table(position, width):
    assert width == 2 * cos.shape[1]
    if token_positions and position.ndim == 2:
      position = jnp.arange(position.shape[1])
    return jnp.asarray(cos)[position], jnp.asarray(sin)[position]

  monkeypatch.setattr(attention_lib, 'rope_table', table)


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
