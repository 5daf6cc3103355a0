"""Expanders against the original's numbers.

The original's decoder is built here, in its own wiring, from our parts with its
weights: vocabulary, attention, cross-attention, feed-forward layers. Its layer
is x + B(norm x), where B is a whole block with a residual and a feed-forward
layer of its own, then cross-attention, then a second feed-forward layer; ours
has each of them once. Other parts that differ on purpose are built around ours
as in `golden_attention`: norms, biases, masks of padding, positions of queries
in cross-attention counted in ids, rotary tables rounded to bfloat16.
"""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from abstractinator.model import attention as attention_lib
from abstractinator.model import layers
from abstractinator.model.attention import LatentAttention, RegularAttention
from abstractinator.model.vocabulary import Vocabulary
from abstractinator.ops.rope import rope_table
from abstractinator.types import Special
from tests.helpers import golden_parts as parts
from tests.helpers.golden_attention import (
  OriginalBlock,
  is_scaled,
  latent_module,
  regular_module,
)
from tests.helpers.remembering import remember_and_cross

# Absolute tolerances of logits and of gradients.
VALUE, GRADIENT = 1e-4, 1e-3
PAD = 258


def rounded_table(position, width, base=10000.0):
  """Returns rotary tables in bfloat16, as the original has them."""
  inverse = base ** -(np.arange(0, width, 2, dtype=np.float32) / width)
  angle = np.asarray(position, np.float32)[..., None] * inverse
  return tuple(
    jnp.asarray(f(angle).astype(ml_dtypes.bfloat16).astype(np.float32))
    for f in (np.cos, np.sin)
  )


class Original:
  """Decoder of a file, with its masks.

  Attributes:
    golden: The file.
    form: 'regular' or 'mla'.
    own: Segment of each position, [B, S] int32.
    sees: True where a position sees another, [B, S, S] bool.
    sees_memory: True where a position sees a code, [B, S, P] bool.
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
      # With a mask of padding the original is not causal.
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
      RegularAttention,
      'rotary_table',
      lambda self, position: rounded_table(in_ids(position), self.head_dim),
    )
    monkeypatch.setattr(
      LatentAttention,
      'rotary_table',
      lambda self, position: rope_table(
        in_ids(position), self.config.retrieval_dim
      ),
    )

  def block(self, p, x):
    """Runs a self-attention block."""
    block = OriginalBlock(
      p,
      self.golden.cfg['attention'],
      heads=self.golden.cfg['ctor']['H'],
      width=x.shape[-1],
      window=None,
    )
    return block(x, jnp.zeros(self.own.shape, jnp.int32))

  def cross(self, p, x, memory):
    """Runs cross-attention."""
    heads, width = self.golden.cfg['ctor']['H'], x.shape[-1]
    form = self.golden.cfg['attention']
    if self.form == 'regular':
      module = regular_module(heads, width, width)
      variables = parts.regular_cross_params(p, heads)
    else:
      module = latent_module(form, heads, width)
      variables = parts.latent_params(
        p, 'kv_comp.weight', 'mla.', is_scaled(form)
      )
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
  """Returns our vocabulary with the original's tables, of width D."""
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
    # The original has no code space and no scale here, and its pad is zeros.
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
  """Returns our logits without those of special ids."""
  first, *others = predicted.logits
  return [first[..., : -len(Special)], *others]


def memory_of(golden, params, codes_hi):
  """Returns the vectors of the codes; of ids, sums of entries."""
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
  """Compares logits, and gradients if the file has them."""
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
  parts.close_gradients(got, golden.group('grad'), GRADIENT)
  for name, grad in zip(inputs, got_inputs, strict=True):
    parts.close(grad, golden.arrays[f'grad_in/{name}'], GRADIENT, name)


def logits_from_states(golden, original, params, codes_hi, codes_lo):
  """Returns the logits of `DecoderExpander`, which is fed encoder states."""
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
  """Returns the ids that the original feeds, and those that condition digits.

  Its special ids are numbers of codes: EOS, fed first, has the digits of the
  code of that number. Its PAD is not a code, but has digits, too.
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
    # Given tables get no gradient; the original's tables do.
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
