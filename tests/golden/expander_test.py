"""Expanders against the original's numbers.

The original's decoder is put together here, in its own wiring, from our parts
with its weights: vocabulary, attention, cross-attention, feed-forward layers.
Its layer is x + Block(norm x), Block a whole layer with a residual and a
feed-forward layer of its own, then cross-attention, then a second feed-forward
layer; ours has each of them once. What else differs on purpose is done around
our parts as in `golden_attention`: norms, biases, masks of padding, positions
of queries in cross-attention counted in ids, rotary tables rounded to bfloat16.
"""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from abstractinator.config.attention import AttentionConfig
from abstractinator.model import attention, layers
from abstractinator.model import attention as attention_lib
from abstractinator.model.attention import LatentAttention, RegularAttention
from abstractinator.model.vocabulary import Vocabulary
from abstractinator.ops.rope import rope_table
from abstractinator.types import Special
from tests.helpers import golden_parts as parts
from tests.helpers.implementations import XLA
from tests.helpers.remembering import remember_and_cross

# Absolute, of logits and of gradients; the tables of attention of a decoder.
VALUE, GRADIENT = 1e-4, 1e-3
PAD = 258
REGULAR = AttentionConfig('regular', None, None, None)


def rounded_table(position, width, base=10000.0):
  """Rotary tables as the original keeps them for regular attention."""
  inverse = base ** -(np.arange(0, width, 2, dtype=np.float32) / width)
  angle = np.asarray(position, np.float32)[..., None] * inverse
  return tuple(
    jnp.asarray(f(angle).astype(ml_dtypes.bfloat16).astype(np.float32))
    for f in (np.cos, np.sin)
  )


class Original:
  """A file, and the masks its decoder has.

  Attributes:
    golden: The file.
    form: 'regular' or 'mla'.
    own: [B, S] int32, segment of each position.
    sees: [B, S, S] bool, positions that positions see.
    sees_memory: [B, S, P] bool, rows of the memory that they see.
  """

  def __init__(self, golden):
    self.golden = golden
    self.form = golden.cfg['attention']['variant']
    kernel = golden.cfg['attention']['kernel']
    self.own = golden.arrays['in/seg_ids']
    rows, size = self.own.shape
    slots = golden.arrays['in/codes_hi'].shape[1]
    is_pad = golden.arrays.get(
      'in/tgt_key_padding_mask', np.zeros((rows, size), bool)
    )
    # The original shifts the mask as if inputs were shifted.
    self.is_pad = np.pad(is_pad, ((0, 0), (1, 0)))[:, :-1]
    causal = np.arange(size)[:, None] >= np.arange(size)
    if self.form == 'regular' and kernel == 'sdpa' and is_pad.any():
      # Causality is lost with a mask of padding.
      causal = np.ones_like(causal)
    self.sees = causal & ~self.is_pad[:, None]
    blocked = golden.arrays.get(
      'in/src_key_padding_mask', np.zeros((rows, slots), bool)
    )
    slot, lookback = np.arange(slots), golden.cfg['ctor']['cross_window']
    own = self.own[..., None]
    self.sees_memory = (slot <= own) & (slot >= own - lookback)
    self.sees_memory = self.sees_memory & ~blocked[:, None]

  def install(self, monkeypatch):
    """Puts the original's masks and positions into our attention."""
    is_real = jnp.asarray(~self.is_pad)
    monkeypatch.setattr(
      attention_lib,
      'attention',
      parts.dense_attention(jnp.asarray(self.sees), is_real),
    )
    monkeypatch.setattr(
      attention_lib,
      'segment_cross_attention',
      parts.dense_attention(jnp.asarray(self.sees_memory)),
    )

    def in_ids(position):
      # Queries have two axes, keys one.
      if position.ndim == 2:
        return np.arange(position.shape[1])
      return np.arange(position.shape[0])

    monkeypatch.setattr(
      attention_lib, 'rope_table', lambda p, w: rounded_table(in_ids(p), w)
    )
    monkeypatch.setattr(
      attention, 'rope_table', lambda p, w: rope_table(in_ids(p), w)
    )

  def module(self, width, biases):
    c, heads = self.golden.cfg['attention'], self.golden.cfg['ctor']['H']
    if self.form == 'regular':
      return RegularAttention(
        width + biases, heads, width // heads, 1, REGULAR, XLA, jnp.float32
      )
    config = AttentionConfig(
      'mla', c['kv_comp_dim'], c['q_comp_dim'], c['retr_dim']
    )
    return LatentAttention(
      width, heads, c['head_dim'], 1, config, XLA, jnp.float32
    )

  def latent_params(self, p, kv_name, prefix, last=None):
    scaled = self.golden.cfg['attention']['kernel'] == 'flex'
    return parts.latent_params(p, kv_name, prefix, scaled, last)

  def block(self, p, x):
    """Their self-attention: a whole layer."""
    module = self.module(x.shape[-1], biases=1)
    if self.form == 'regular':
      variables = parts.regular_params(p, module.num_heads)
      normed = parts.layer_norm(x, p['ln1.weight'], p['ln1.bias'])
      out, _ = module.apply(
        variables, parts.with_one(normed), self._groups(), window=None
      )
      x = x + out[..., :-1] + p['proj.bias']
      normed = parts.layer_norm(x, p['ln2.weight'], p['ln2.bias'])
      return x + parts.swiglu(p, 'mlp.0.', normed)
    variables = self.latent_params(
      p, 'attn.kv_proj.weight', 'attn.mla.', p['attn.o_proj.weight']
    )
    normed = parts.rms_norm(x, p['norm1.weight'])
    out, _ = module.apply(variables, normed, self._groups(), window=None)
    x = x + out
    return x + parts.swiglu(p, 'ffn.', parts.rms_norm(x, p['norm2.weight']))

  def cross(self, p, x, memory):
    """Their cross-attention."""
    module = self.module(x.shape[-1], biases=0)
    if self.form == 'regular':
      variables = parts.regular_cross_params(p, module.num_heads)
    else:
      variables = self.latent_params(p, 'kv_comp.weight', 'mla.')
    own = jnp.asarray(self.own)
    return module.apply(
      variables, x, memory, own, own * 0, lookback=1, method=remember_and_cross
    )

  def decode(self, params, x, memory):
    """Their decoder: states, normalised by our norm."""
    number = 0
    while f'decoder.layers.{number}.norm1.weight' in params:
      p = parts.below(params, f'decoder.layers.{number}.')
      # Self- and cross-attention have one or two wrappers around them.
      own, cross = (
        {re.sub(r'^(inner\.)+', '', k): v for k, v in parts.below(p, n).items()}
        for n in ('self_attn.', 'cross_attn.')
      )
      x = x + self.block(own, parts.rms_norm(x, p['norm1.weight']))
      x = x + self.cross(cross, parts.rms_norm(x, p['norm2.weight']), memory)
      x = x + parts.swiglu(p, 'ffn.', parts.rms_norm(x, p['norm3.weight']))
      number += 1
    variables = {'params': {'scale': params['decoder.final_norm.weight']}}
    return layers.RMSNorm(jnp.float32).apply(variables, x)

  def _groups(self):
    return jnp.zeros(self.own.shape, jnp.int32)


def vocabulary(golden, tables, **changes):
  """Our vocabulary with the original's tables in the width of the model."""
  ctor = golden.cfg['ctor']
  width = ctor['D']
  module = Vocabulary(
    tuple(len(table) for table in tables),
    width,
    width,
    'squared' if ctor['use_sqdist_logits'] else 'dot',
    ctor.get('residual_conditioning', True),
    jnp.float32,
    **changes,
  )
  params = {
    # The original has no code space here, no scale, and its pad is a zero.
    'kernel': jnp.eye(width),
    'log_scale': jnp.log(width * (2.0 if ctor['use_sqdist_logits'] else 1.0)),
    'special': {'embedding': jnp.zeros((len(Special), width))},
  }
  if module.has_tables:
    params |= {
      f'stage_{m}': {'embedding': table} for m, table in enumerate(tables)
    }
  return module, {'params': params}


def logits_of(golden, predicted):
  """Ours without those of the specials, which the original has not apart."""
  first, *others = predicted.logits
  return [first[..., : -len(Special)], *others]


def memory_of(golden, params, codes_hi):
  """Codes as vectors; with a quantizer above, sums of its entries."""
  if codes_hi:
    return codes_hi[0]
  tables = stage_tables(params, 'hi_vq.')
  module, variables = vocabulary(golden, tables)
  codes = golden.arrays['in/codes_hi']
  ids = jnp.asarray(np.where(codes == PAD, module.num_ids + 2, codes))
  return module.apply(variables, ids, method='embed')


def stage_tables(params, prefix):
  names = [f'{prefix}stages.{m}.codebook' for m in range(len(params))]
  return tuple(params[name] for name in names if name in params)


def is_fed_states(golden):
  return not is_integer(golden.arrays['in/codes_lo'])


def is_integer(x):
  return np.issubdtype(x.dtype, np.integer)


def run(golden, ours, inputs):
  """Holds logits, and gradients where the file has them."""
  params = {k: jnp.asarray(v) for k, v in golden.group('param').items()}
  arrays = [jnp.asarray(golden.arrays[f'in/{name}']) for name in inputs]
  outs, pullback = jax.vjp(jax.jit(ours), params, *arrays)
  is_valid = golden.arrays['aux/valid']
  assert is_valid.any()
  wanted = golden.group('out')
  assert len(outs) == sum(name.startswith('stage_logits') for name in wanted)
  for stage, out in enumerate(outs):
    want = wanted[f'stage_logits_{stage}']
    parts.close(out[is_valid], want[is_valid], VALUE, f'stage {stage}')
  if not golden.group('grad'):
    return
  cots = [
    jnp.asarray(golden.arrays[f'cot/stage_logits_{m}'])
    for m in range(len(outs))
  ]
  got, *got_inputs = pullback(cots)
  for name, want in golden.group('grad').items():
    parts.close(got[name], want, GRADIENT, name)
  for name, grad in zip(inputs, got_inputs, strict=True):
    parts.close(grad, golden.arrays[f'grad_in/{name}'], GRADIENT, name)


def logits_from_states(golden, original, params, codes_hi, codes_lo):
  """Of a table, from states of the encoder."""
  h = original.decode(params, codes_lo, codes_hi)
  module, variables = vocabulary(golden, [params['vq_lo.codebook']])
  ids = jnp.zeros(h.shape[:2], jnp.int32)
  predicted = module.apply(variables, h, ids, method='predict')
  return logits_of(golden, predicted)


@pytest.mark.golden('c11_*', where=is_fed_states)
def test_golden_expander_of_hidden_states(golden, monkeypatch):
  """`DecoderExpander`: fed states, unshifted; ids are predicted by a table."""
  original = Original(golden)
  original.install(monkeypatch)

  run(
    golden,
    lambda *args: logits_from_states(golden, original, *args),
    ['codes_hi', 'codes_lo'],
  )


def fed_and_told(golden, module):
  """Ids that the original feeds, and those whose digits it tells of.

  It has its specials within the codes: the end, fed first, is the code of the
  same number and so has that code's digits. Its pad is no code, but has digits
  to tell of too.
  """
  ids = jnp.asarray(golden.arrays['in/codes_lo'])
  first = jnp.ones_like(ids[:, :1], bool)
  first = jnp.pad(first, ((0, 0), (0, ids.shape[1] - 1)))
  fed = layers.shift_right(ids, first, golden.cfg['ctor']['eos_id'])
  told = ids % module.num_ids
  if len(module.sizes) == 1:
    return fed, told
  pad = module.num_ids + Special.PAD
  return jnp.where(fed == PAD, pad, fed % module.num_ids), told


@pytest.mark.golden('c11_*', where=lambda x: not is_fed_states(x))
@pytest.mark.parametrize('has_tables', [True, False])
def test_golden_expander_of_ids(golden, has_tables, monkeypatch):
  """`DecoderOnlyExpanderRVQ`: ids shifted right, of one or several digits."""
  if not has_tables:
    # Given tables get no gradient; of the original they do.
    golden = without_gradients(golden)
  original = Original(golden)
  original.install(monkeypatch)
  is_continuous = not is_integer(golden.arrays['in/codes_hi'])

  def ours(params, *codes_hi):
    if golden.cfg['lo_vq'] is None:
      tables = (params['lo_embed.weight'],)
    else:
      tables = stage_tables(params, 'lo_vq.')
    module, variables = vocabulary(golden, tables, has_tables=has_tables)
    given = None if has_tables else tables
    fed, told = fed_and_told(golden, module)
    x = module.apply(variables, fed, given, method='embed')
    h = original.decode(params, x, memory_of(golden, params, codes_hi))
    predicted = module.apply(variables, h, told, given, method='predict')
    return logits_of(golden, predicted)

  run(golden, ours, ['codes_hi'] if is_continuous else [])


def without_gradients(golden):
  arrays = {
    name: array
    for name, array in golden.arrays.items()
    if not name.startswith(('grad', 'cot'))
  }
  return type(golden)(golden.name, golden.cfg, arrays)
