"""Heads, losses and entropies of the entropy model against the original's.

The stack is made of our attention and feed-forward layers with the original's
weights, wired in its way (norms, biases, rotary tables rounded to bfloat16);
see `golden_attention`. Our heads follow, with the original's weights.

The original feeds id t, and its position t predicts id t + 1; in ours position
s predicts id s. Here states go straight to our heads, so that positions are the
original's.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import (
  softmax_cross_entropy_with_integer_labels as cross_entropy,
)

from abstractinator.config import EntropyHeadsConfig
from abstractinator.config.attention import StackConfig
from abstractinator.model.entropy_model import (
  EntropyModel,
  predictive_entropy_bits,
)
from abstractinator.ops import cache as cache_lib
from abstractinator.ops import gaussian, sampling
from abstractinator.types import Special
from tests.helpers.golden_attention import REGULAR, OriginalBlock
from tests.helpers.golden_parts import (
  below,
  close,
  close_gradients,
  in_order,
  rms_norm,
  with_one,
)
from tests.helpers.implementations import XLA
from tests.helpers.jitted import jit

# Absolute tolerances of values and of gradients.
VALUE, GRADIENT = 2e-5, 2e-4
# Number of last ids that come one at a time, after all others at once.
NUM_STEPS = 4

pytestmark = pytest.mark.usefixtures('rounded_tables')


def blocks_of(golden, params, prefix):
  """Returns the blocks of the original below a prefix, in order."""
  c = golden.cfg
  return [
    OriginalBlock(
      below(params, name),
      c['attn'],
      heads=c['trunk_heads'],
      width=c['dim'],
      window=c['trunk_window'],
    )
    for name in in_order(rf'{prefix}\.(\d+)\.inner\.(block\.)?', params)
  ]


def run_blocks(blocks, x, group_BS):
  for block in blocks:
    x = block(x, group_BS)
  return x


def stream_blocks(blocks, x):
  """Runs blocks on one document per row, the last `NUM_STEPS` ids by steps."""
  rows, size, _ = x.shape
  first = size - NUM_STEPS
  group = jnp.zeros((rows, size), jnp.int32)
  for block in blocks:
    module, normed = block.module, block.normed(x)
    widths = module.cached_widths(
      module.num_heads, module.head_dim, module.config
    )
    slots = block.window + 1
    cache = cache_lib.empty_cache(rows, slots, widths, 1, jnp.float32)
    attended, key_values = module.apply(
      block.variables, normed[:, :first], group[:, :first], window=block.window
    )
    cache = cache_lib.fill(cache, [key_values], group[:, :first])
    outs = list(jnp.moveaxis(attended, 1, 0))
    for t in range(first, size):
      cache, step = cache_lib.advance(cache, group[:, 0], jnp.ones(rows, bool))
      out, layer = module.apply(
        block.variables, normed[:, t], cache.layers[0], step, method='step'
      )
      cache = dataclasses.replace(cache, layers=(layer,))
      outs.append(out)
    # In a stream the original's latent block does not add to the normalised
    # stream.
    x = block.after(x, jnp.stack(outs, axis=1))
  return x


def heads_config(golden, **changes):
  """Returns our settings of the heads of a file."""
  c = golden.cfg['entropy_cfg']
  g = c['gaussian']
  settings = dict(
    tie_to_embedding=golden.cfg['tied'],
    # The original has one, whatever its settings say.
    gaussian_components=int(g['use']),
    # Its layers before the head are run as blocks of the original.
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
  """Returns the predictions of our heads from the original's states."""
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
    # The original has no matrix and no scale.
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
  return module.apply({'params': params}, normed, y, None, method='predict')


def groups(golden):
  nothing = np.zeros(golden.arrays['in/ids'].shape, bool)
  is_padding = golden.arrays.get('in/key_padding_mask', nothing)
  return jnp.asarray(np.where(is_padding, -1, 0), jnp.int32)


def forward(golden, p, x, group_BS):
  x = run_blocks(blocks_of(golden, p, 'layers'), x, group_BS)
  y = jax.lax.stop_gradient(x) if heads_config(golden).gaussian_detach else x
  y = run_blocks(blocks_of(golden, p, 'gauss_extra_layers'), y, group_BS)
  return predict(golden, p, x, y)


def nats_of_next(predicted, x):
  """Returns nats of positions 1 and later, whose targets get a gradient."""
  earlier = jax.tree.map(lambda a: a[:, :-1], predicted.mixture)
  return gaussian.nll_nats(earlier, x[:, 1:])


def bits(golden, predicted, x):
  """Returns the `bits` of the original."""
  heads = heads_config(golden)
  if heads.source == 'gaussian':
    of_next = nats_of_next(predicted, x) / np.log(2)
    return jnp.pad(of_next, ((0, 0), (1, 0)))
  # The original's numbers are nats.
  return predictive_entropy_bits(predicted, heads) * np.log(2)


def loss(golden, predicted, x, group_BS):
  """Returns the original's loss: mean nats plus mean bits per dimension."""
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
  close_gradients(got, grads, GRADIENT)
  close(got_x, golden.arrays['grad_in/x'], GRADIENT, 'x')


def plain_entropy_bits(logits, temperature, top_p, top_k):
  """Returns the entropy after the original's filters, [B], in float64."""
  logits = np.float64(logits) / temperature
  if top_k:
    least = np.sort(logits, axis=-1)[:, -top_k, None]
    logits = np.where(logits >= least, logits, -np.inf)
  order = np.argsort(-logits, axis=-1, kind='stable')
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p = np.take_along_axis(p / p.sum(-1, keepdims=True), order, axis=-1)
  # The id that crosses the threshold stays.
  p = np.where(np.cumsum(p, axis=-1) - p <= top_p, p, 0)
  p /= p.sum(-1, keepdims=True)
  return -np.sum(p * np.log2(np.where(p > 0, p, 1)), axis=-1)


@pytest.mark.golden('c09_entropy_*')
def test_golden_predictive_entropies(golden):
  """The original's are NaN under filters; ours are held to a plain formula."""
  p, x = arrays_of(golden)
  group = groups(golden)
  run = jax.jit(lambda p, x: forward(golden, p, x, group))
  predicted = run(p, x)
  last = jax.tree.map(lambda a: a[:, -1], predicted)
  is_gaussian = heads_config(golden).source == 'gaussian'
  # The original reads the last column even where it is padding.
  is_real = golden.arrays['aux/valid'][:, -1]
  assert is_real.any()
  seen = {'theirs': 0, 'plain': 0}
  for name, want in golden.group('out').items():
    if not name.startswith('pred_entropy'):
      continue
    t, top_p, k = (float(x.split('=')[1]) for x in name.split('|')[1:])
    if t == 0:
      # The original takes it for 1; ours does not allow it.
      with pytest.raises(ValueError, match='temperature'):
        heads_config(golden, temperature=t)
      continue
    filters = dict(temperature=t)
    if not is_gaussian:
      filters |= dict(top_k=int(k), top_p=top_p)
    got = predictive_entropy_bits(last, heads_config(golden, **filters))
    # The original's Gaussian entropy is that of all dimensions together.
    want = want / golden.cfg['dim'] if is_gaussian else want
    is_nan = np.isnan(want).any()
    if is_nan:
      assert not is_gaussian
      assert k or top_p < 1
      want = plain_entropy_bits(last.logits, t, top_p, int(k))
    seen['plain' if is_nan else 'theirs'] += 1
    close(got[is_real], want[is_real], VALUE, name)
  assert seen['theirs'] >= 2
  assert is_gaussian or seen['plain'] >= 2
  if is_gaussian:
    got = predictive_entropy_bits(last, heads_config(golden))
    close(got[is_real], golden.arrays['out/pred_bpd_next'][is_real], VALUE)


@pytest.mark.golden('c09_entropy_*')
def test_golden_streaming(golden):
  """Rows without padding, the last ids one at a time."""

  @jit
  def streamed(p, x):
    states = stream_blocks(blocks_of(golden, p, 'layers'), x)
    y = stream_blocks(blocks_of(golden, p, 'gauss_extra_layers'), states)
    return bits(golden, predict(golden, p, states, y), x)

  got = np.array(streamed(*arrays_of(golden)))
  want = golden.arrays['out/stream_bits_nopad']
  if heads_config(golden).source == 'gaussian':
    # A step of the original does not know the prediction of the one before.
    assert (want[:, -NUM_STEPS:] == 0).all()
    assert (got[:, -NUM_STEPS:] != 0).all()
    if 'in/key_padding_mask' not in golden.arrays:
      close(got, golden.arrays['out/bits'], VALUE)
    got, want = got[:, :-NUM_STEPS], want[:, :-NUM_STEPS]
  close(got, want, VALUE)


@pytest.mark.golden('c09_categorical_*')
def test_golden_categorical_entropies(golden):
  """The original gives NaN under filters; `out_nansafe` has right numbers."""
  logits = jnp.asarray(golden.arrays['in/logits'])
  # Filters are arguments: one compilation.
  filtered_entropy = jit(_filtered_entropy)
  quirks = 0
  for name, want in golden.group('out_nansafe').items():
    t, top_p, k = (float(x.split('=')[1]) for x in name.split('|'))
    filters = dict(top_k=int(k), top_p=top_p)
    as_is = golden.arrays[f'out/{name}']
    quirks += int(np.isnan(as_is).any())
    entropy = functools.partial(filtered_entropy, logits, **filters)
    if t == 0:
      # The original takes it for 1; ours keeps the most likely id alone.
      close(entropy(temperature=0.0), np.zeros(len(logits)), VALUE, name)
    got = entropy(temperature=t or 1.0)
    close(got, want, VALUE, name)
    is_number = ~np.isnan(as_is)
    close(got[is_number], as_is[is_number], VALUE, name)
  assert quirks > 0


def _filtered_entropy(logits, temperature, top_k, top_p):
  filters = sampling.Filters(temperature, top_k, top_p)
  return sampling.entropy_bits(sampling.filter_logits(logits, filters))
