"""Heads, losses and entropies of the entropy model against the original's.

The trunk is made of our attention and feed-forward layers with the original's
weights, wired in its way (norms, biases, rotary tables rounded to bfloat16),
as in `golden_attention`. On it stand our heads, with the original's weights.

The original feeds id t and names t what it then knows of id t + 1; in ours
position s is the prediction of id s. States go straight to our heads here, so
that positions are the original's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import (
  softmax_cross_entropy_with_integer_labels as cross_entropy,
)

from abstractinator.config import EntropyHeadsConfig
from abstractinator.config.attention import AttentionConfig, StackConfig
from abstractinator.model.attention import LatentAttention, RegularAttention
from abstractinator.model.entropy_model import (
  EntropyModel,
  predictive_entropy_bits,
)
from abstractinator.ops import cache as cache_lib
from abstractinator.ops import gaussian, sampling
from abstractinator.types import Special
from tests.helpers.golden_attention import REGULAR, is_scaled
from tests.helpers.golden_parts import (
  below,
  close,
  in_order,
  latent_params,
  layer_norm,
  regular_params,
  rms_norm,
  swiglu,
  with_one,
)
from tests.helpers.implementations import XLA

# Absolute, of values and of gradients.
VALUE, GRADIENT = 2e-5, 2e-4
# How many ids came one at a time, after all others at once.
NUM_STEPS = 4

pytestmark = pytest.mark.usefixtures('rounded_tables')


class Blocks:
  """Blocks of the original made of our layers."""

  def __init__(self, golden, params, prefix):
    c = golden.cfg
    heads, width, a = c['trunk_heads'], c['dim'], c['attn']
    self.window = c['trunk_window']
    pattern = rf'{prefix}\.(\d+)\.inner\.(block\.)?'
    self.prefixes = in_order(pattern, params)
    self.is_latent = a['variant'] == 'mla'
    self.params, self.form, self.heads = params, a, heads
    if self.is_latent:
      form = AttentionConfig(
        'mla', a['kv_comp_dim'], a['q_comp_dim'], a['retr_dim']
      )
      args = (width, heads, a['head_dim'], 1, form, XLA, jnp.float32)
      self.attention = LatentAttention(*args)
    else:
      args = (width + 1, heads, width // heads, 1, REGULAR, XLA, jnp.float32)
      self.attention = RegularAttention(*args)

  def normed(self, p, prefix, x):
    if self.is_latent:
      return rms_norm(x, p[f'{prefix}norm1.weight'])
    normed = layer_norm(x, p[f'{prefix}ln1.weight'], p[f'{prefix}ln1.bias'])
    return with_one(normed)

  def variables(self, p, prefix):
    if self.is_latent:
      return latent_params(
        p,
        f'{prefix}attn.kv_proj.weight',
        f'{prefix}attn.mla.',
        is_scaled(self.form),
      )
    return regular_params(below(p, prefix), self.heads)

  def after(self, p, prefix, x, attended):
    if self.is_latent:
      x = x + attended
      normed = rms_norm(x, p[f'{prefix}norm2.weight'])
      return x + swiglu(p, f'{prefix}ffn.', normed)
    x = x + attended[..., :-1] + p[f'{prefix}proj.bias']
    normed = layer_norm(x, p[f'{prefix}ln2.weight'], p[f'{prefix}ln2.bias'])
    return x + swiglu(p, f'{prefix}mlp.0.', normed)

  def __call__(self, x, group_BS):
    p = self.params
    for prefix in self.prefixes:
      normed = self.normed(p, prefix, x)
      attended, _ = self.attention.apply(
        self.variables(p, prefix), normed, group_BS, window=self.window
      )
      # The latent sliding block goes on from the normalised stream.
      x = self.after(p, prefix, normed if self.is_latent else x, attended)
    return x

  def stream(self, x):
    """Ids of one document: the last `NUM_STEPS` come one at a time."""
    for prefix in self.prefixes:
      x = self._stream_layer(prefix, x)
    return x

  def _stream_layer(self, prefix, x):
    p = self.params
    variables = self.variables(p, prefix)
    normed = self.normed(p, prefix, x)
    rows, size, _ = x.shape
    first = size - NUM_STEPS
    group = jnp.zeros((rows, size), jnp.int32)
    widths = self.attention.cached_widths(
      self.heads, self.attention.head_dim, self.attention.config
    )
    slots = self.window + 1
    cache = cache_lib.empty_cache(rows, slots, widths, 1, jnp.float32)
    attended, key_values = self.attention.apply(
      variables, normed[:, :first], group[:, :first], window=self.window
    )
    cache = cache_lib.fill(cache, [key_values], group[:, :first])
    outs = list(jnp.moveaxis(attended, 1, 0))
    for t in range(first, size):
      cache, step = cache_lib.advance(cache, group[:, 0], jnp.ones(rows, bool))
      out, layer = self.attention.apply(
        variables, normed[:, t], cache.layers[0], step, method='step'
      )
      cache = cache.replace(layers=(layer,))
      outs.append(out)
    # There the latent block does not go on from the normalised stream.
    return self.after(p, prefix, x, jnp.stack(outs, axis=1))


def heads_config(golden, **changes):
  c = golden.cfg['entropy_cfg']
  g = c['gaussian']
  settings = dict(
    tie_to_embedding=golden.cfg['tied'],
    # There is one, whatever the settings say.
    gaussian_components=int(g['use']),
    # They are blocks of the original, before the head.
    gaussian_layers=0,
    gaussian_detach=g['detach_trunk'],
    gaussian_log_variance_min=g['clamp_logvar_min'],
    gaussian_log_variance_max=g['clamp_logvar_max'],
    source=c['segmentation']['source'],
    temperature=1.0,
    top_k=0,
    top_p=1.0,
  )
  return EntropyHeadsConfig(**(settings | changes))


def predict(golden, p, x, y):
  """Our heads on the original's states."""
  width, vocab = golden.cfg['dim'], golden.cfg['vocab_size']
  module = EntropyModel(
    StackConfig(1, 1, None, 1, REGULAR),
    heads_config(golden),
    width,
    vocab - len(Special),
    XLA,
    jnp.float32,
  )
  params = {}
  if golden.cfg['tied']:
    normed = rms_norm(x, p['logit_norm.weight'])
    params['embed'] = {'embedding': p['logit_tied_weight']}
    # Theirs has no matrix and no scale.
    params['head'] = {'kernel': jnp.eye(width) * width**0.5}
  elif 'logit_proj.weight' in p:
    normed = with_one(rms_norm(x, p['logit_norm.weight']))
    weight, bias = p['logit_proj.weight'], p['logit_proj.bias']
    params['head'] = {'kernel': jnp.concatenate([weight.T, bias[None]])}
  else:
    # Ours always has logits; nothing is compared with these.
    normed, params['head'] = x, {'kernel': jnp.zeros((width, vocab))}
  if 'gauss_mu.weight' in p:
    params['gaussian_head'] = {
      ours: {
        'kernel': p[f'{theirs}.weight'].T[:, None],
        'bias': p[f'{theirs}.bias'][None],
      }
      for ours, theirs in (
        ('mean', 'gauss_mu'),
        ('log_variance', 'gauss_logvar'),
      )
    }
  return module.apply({'params': params}, normed, y, method='predict')


def groups(golden):
  nothing = np.zeros(golden.arrays['in/ids'].shape, bool)
  is_padding = golden.arrays.get('in/key_padding_mask', nothing)
  return jnp.asarray(np.where(is_padding, -1, 0), jnp.int32)


def forward(golden, p, x, group_BS):
  x = Blocks(golden, p, 'layers')(x, group_BS)
  y = jax.lax.stop_gradient(x) if heads_config(golden).gaussian_detach else x
  return predict(
    golden, p, x, Blocks(golden, p, 'gauss_extra_layers')(y, group_BS)
  )


def nats_of_next(predicted, x):
  """Of each position but the first, with the gradient of the target."""
  earlier = jax.tree.map(lambda a: a[:, :-1], predicted.mixture)
  return gaussian.nll_nats(earlier, x[:, 1:])


def bits(golden, predicted, x):
  """What the original calls so."""
  heads = heads_config(golden)
  if heads.source == 'gaussian':
    of_next = nats_of_next(predicted, x) / np.log(2)
    return jnp.pad(of_next, ((0, 0), (1, 0)))
  # They are nats.
  return predictive_entropy_bits(predicted, heads) * np.log(2)


def loss(golden, predicted, x, group_BS):
  """Nats for logits plus bits per dimension, means over the ids after."""
  is_real = group_BS[:, 1:] >= 0

  def mean(x_BS):
    return jnp.sum(jnp.where(is_real, x_BS, 0)) / jnp.sum(is_real)

  weights, total = golden.cfg['entropy_cfg']['loss'], 0.0
  if golden.cfg['entropy_cfg']['logit']['use']:
    ids = jnp.asarray(golden.arrays['in/ids'])[:, 1:]
    ce = cross_entropy(predicted.logits[:, :-1], ids)
    total += weights['ce_weight'] * mean(ce)
  if predicted.mixture is not None:
    nll = nats_of_next(predicted, x) / np.log(2)
    total += weights['nll_weight'] * mean(nll)
  return total


def arrays_of(golden):
  params = {n: jnp.asarray(x) for n, x in golden.group('param').items()}
  return params, jnp.asarray(golden.arrays['in/x'])


@pytest.mark.golden('c09_entropy_*')
def test_golden_heads_bits_and_losses(golden):
  p, x = arrays_of(golden)
  group = groups(golden)

  @jax.jit
  def run(p, x):
    predicted = forward(golden, p, x, group)
    return (
      predicted,
      bits(golden, predicted, x),
      loss(golden, predicted, x, group),
    )

  predicted, got_bits, got_loss = run(p, x)
  is_real = golden.arrays['aux/valid']
  assert is_real.any()
  out = golden.group('out')
  pairs = [(got_bits, 'bits')]
  if 'logits' in out:
    pairs.append((predicted.logits, 'logits'))
  if 'mu' in out:
    pairs.append((predicted.mixture.mean_JD[..., 0, :], 'mu'))
    pairs.append((predicted.mixture.log_variance_JD[..., 0, :], 'logvar'))
  assert len(pairs) > 1
  for got, name in pairs:
    close(got[is_real], out[name][is_real], VALUE, name)
  close(got_loss, out['loss'], VALUE, 'loss')


@pytest.mark.golden('c09_entropy_*', where=lambda x: x.group('grad'))
def test_golden_gradients(golden):
  p, x = arrays_of(golden)
  group = groups(golden)
  grads = golden.group('grad')

  def objective(p, x):
    predicted = forward(golden, p, x, group)
    return jnp.sum(
      bits(golden, predicted, x) * golden.arrays['cot/bits']
    ) + loss(golden, predicted, x, group)

  got, got_x = jax.jit(jax.grad(objective, argnums=(0, 1)))(p, x)
  for name, want in grads.items():
    close(got[name], want, GRADIENT, name)
  close(got_x, golden.arrays['grad_in/x'], GRADIENT, 'x')


@pytest.mark.golden('c09_entropy_*')
def test_golden_predictive_entropies(golden):
  p, x = arrays_of(golden)
  group = groups(golden)
  run = jax.jit(lambda p, x: forward(golden, p, x, group))
  predicted = run(p, x)
  last = jax.tree.map(lambda a: a[:, -1], predicted)
  is_gaussian = heads_config(golden).source == 'gaussian'
  # The last column is read even where it is padding.
  is_real = golden.arrays['aux/valid'][:, -1]
  assert is_real.any()
  seen = 0
  for name, want in golden.group('out').items():
    if not name.startswith('pred_entropy'):
      continue
    t, top_p, k = (float(x.split('=')[1]) for x in name.split('|')[1:])
    if t == 0:
      # Taken for 1 there, and not allowed here.
      with pytest.raises(ValueError, match='temperature'):
        heads_config(golden, temperature=t)
      continue
    filters = dict(temperature=t)
    if not is_gaussian:
      filters |= dict(top_k=int(k), top_p=top_p)
    got = predictive_entropy_bits(last, heads_config(golden, **filters))
    assert jnp.isfinite(got).all()
    # A Gaussian's is of all dimensions together there.
    want = want / golden.cfg['dim'] if is_gaussian else want
    if not np.isnan(want).any():
      close(got[is_real], want[is_real], VALUE, name)
      seen += 1
    else:
      assert not is_gaussian
      assert k or top_p < 1
  assert seen >= 2
  if is_gaussian:
    got = predictive_entropy_bits(last, heads_config(golden))
    close(got[is_real], golden.arrays['out/pred_bpd_next'][is_real], VALUE)


@pytest.mark.golden('c09_entropy_*')
def test_golden_streaming(golden):
  """Ids without padding, the last ones one at a time."""
  p, x = arrays_of(golden)
  states = Blocks(golden, p, 'layers').stream(x)
  extra = Blocks(golden, p, 'gauss_extra_layers')
  y = extra.stream(states)
  got = np.array(bits(golden, predict(golden, p, states, y), x))
  want = golden.arrays['out/stream_bits_nopad']
  if heads_config(golden).source == 'gaussian':
    # A step does not know the prediction of the one before there.
    assert (want[:, -NUM_STEPS:] == 0).all()
    assert (got[:, -NUM_STEPS:] != 0).all()
    if 'in/key_padding_mask' not in golden.arrays:
      close(got, golden.arrays['out/bits'], VALUE)
    got, want = got[:, :-NUM_STEPS], want[:, :-NUM_STEPS]
  close(got, want, VALUE)


@pytest.mark.golden('c09_categorical_*')
def test_golden_categorical_entropies(golden):
  """Not a number there under any active filter; `out_nansafe` mends that."""
  logits = jnp.asarray(golden.arrays['in/logits'])
  quirks = 0
  for name, want in golden.group('out_nansafe').items():
    t, top_p, k = (float(x.split('=')[1]) for x in name.split('|'))
    filters = dict(top_k=int(k), top_p=top_p)
    as_is = golden.arrays[f'out/{name}']
    quirks += int(np.isnan(as_is).any())
    entropy = functools.partial(_filtered_entropy, logits, **filters)
    if t == 0:
      # Taken for 1 there; the most likely id alone here.
      close(entropy(temperature=0.0), np.zeros(len(logits)), VALUE, name)
    got = entropy(temperature=t or 1.0)
    close(got, want, VALUE, name)
    is_number = ~np.isnan(as_is)
    close(got[is_number], as_is[is_number], VALUE, name)
  assert quirks > 0


def _filtered_entropy(logits, temperature, top_k, top_p):
  filters = sampling.Filters(temperature, top_k, top_p)
  return sampling.entropy_bits(sampling.filter_logits(logits, filters))
