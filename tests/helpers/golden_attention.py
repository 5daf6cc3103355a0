"""Comparison of attention with the original's numbers.

The original's weights are converted to our shapes, and gradients are taken with
respect to the original's weights, so that projections are compared as well.
Parts that differ on purpose are built around our modules, in the original's
way: norms, biases, its residual wiring, and in regular attention its rotary
tables, which are rounded to bfloat16.
"""

import jax
import jax.numpy as jnp
import pytest

from abstractinator.config.attention import AttentionConfig
from abstractinator.model.attention import LatentAttention, RegularAttention
from tests.helpers.golden_parts import (
  close,
  close_gradients,
  latent_params,
  layer_norm,
  regular_params,
  rms_norm,
  swiglu,
  with_one,
)
from tests.helpers.implementations import BY_NAME

# Absolute tolerances of values and of gradients.
VALUE, GRADIENT = 2e-5, 2e-4
# The tests of the ops compare them with the reference.
REFERENCE = pytest.param('reference', marks=pytest.mark.nightly)
OPS = pytest.mark.parametrize('implementation', [REFERENCE, 'xla', 'dense'])
REGULAR = AttentionConfig('regular', None, None, None)


def hold(ours, golden, inputs, is_compared, prefix, values_only=False):
  """Compares `ours(params, *inputs)` with a file, and gradients if it has any.

  Args:
    ours: Function of the original's parameters and the inputs.
    golden: The file.
    inputs: Names of the differentiable inputs.
    is_compared: True for rows to compare, [B, T] bool.
    prefix: Prefix of the names of the parameters.
    values_only: Whether to leave gradients out, if those of the file are of
      another function.
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
  wanted = {name.removeprefix(prefix): x for name, x in grads.items()}
  close_gradients(got, wanted, GRADIENT)
  for name, grad in zip(inputs, got_inputs, strict=True):
    close(grad, golden.arrays[f'grad_in/{name}'], GRADIENT, name)


def form_of(golden):
  """Returns the variant and the kernel of the attention of a file."""
  form = golden.cfg['attention']
  return form['variant'], form['kernel']


def stored_tables(monkeypatch, golden, token_positions=False):
  """Uses the rotary tables of a file in regular attention."""
  cos, sin = (golden.arrays[f'aux/rope_{x}'] for x in ('cos', 'sin'))

  def table(self, position):
    assert self.head_dim == 2 * cos.shape[1]
    if token_positions and position.ndim == 2:
      position = jnp.arange(position.shape[1])
    return jnp.asarray(cos)[position], jnp.asarray(sin)[position]

  monkeypatch.setattr(RegularAttention, 'rotary_table', table)


def latent_module(form, heads, width, implementation='xla'):
  """Returns `LatentAttention` of a stream of some width."""
  config = AttentionConfig(
    'mla', form['kv_comp_dim'], form['q_comp_dim'], form['retr_dim']
  )
  return LatentAttention(
    width,
    heads,
    form['head_dim'],
    1,
    config,
    BY_NAME[implementation],
    jnp.float32,
    parent=None,
  )


def regular_module(heads, width, out_width, implementation='xla'):
  """Returns `RegularAttention` with heads of `width` / `heads` dimensions."""
  return RegularAttention(
    out_width,
    heads,
    width // heads,
    1,
    REGULAR,
    BY_NAME[implementation],
    jnp.float32,
    parent=None,
  )


def is_scaled(form):
  """Returns True if the original scales the scores of latent attention."""
  return form['kernel'] != 'sdpa'


class OriginalBlock:
  """A self-attention block of the original around our attention and SwiGLU.

  Attributes:
    p: Parameters of the block.
    window: Number of ids before itself that an id sees; None for all.
    is_latent: Whether attention is latent.
    module: Our attention.
    variables: Its variables, with the weights of the block.
  """

  def __init__(self, p, form, *, heads, width, window, implementation='xla'):
    self.p, self.window = p, window
    self.is_latent = form['variant'] == 'mla'
    if self.is_latent:
      self.module = latent_module(form, heads, width, implementation)
      # A block without window has one more linear map after the last.
      last = p['attn.o_proj.weight'] if window is None else None
      self.variables = latent_params(
        p, 'attn.kv_proj.weight', 'attn.mla.', is_scaled(form), last
      )
    else:
      # Inputs and outputs have one dimension more, for biases.
      self.module = regular_module(heads, width, width + 1, implementation)
      self.variables = regular_params(p, heads)

  def normed(self, x):
    """Returns the input of the attention."""
    if self.is_latent:
      return rms_norm(x, self.p['norm1.weight'])
    return with_one(layer_norm(x, self.p['ln1.weight'], self.p['ln1.bias']))

  def after(self, x, attended):
    """Returns the block's output from the residual stream and attention."""
    p = self.p
    if self.is_latent:
      x = x + attended
      return x + swiglu(p, 'ffn.', rms_norm(x, p['norm2.weight']))
    x = x + attended[..., :-1] + p['proj.bias']
    normed = layer_norm(x, p['ln2.weight'], p['ln2.bias'])
    return x + swiglu(p, 'mlp.0.', normed)

  def __call__(self, x, group_BS):
    normed = self.normed(x)
    attended, _ = self.module.apply(
      self.variables, normed, group_BS, window=self.window
    )
    # The original's latent block with a window adds to the normalised stream.
    is_replaced = self.is_latent and self.window is not None
    return self.after(normed if is_replaced else x, attended)
