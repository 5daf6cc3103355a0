"""Cross-attention to segments against the original's numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model import attention as attention_lib
from abstractinator.model.attention import LatentAttention
from abstractinator.ops.rope import rope_table
from tests.helpers.golden_attention import (
  OPS,
  form_of,
  hold,
  is_scaled,
  latent_module,
  regular_module,
  stored_tables,
)
from tests.helpers.golden_parts import (
  dense_attention,
  latent_params,
  regular_cross_params,
)
from tests.helpers.remembering import remember_and_cross


def cross_visible(golden):
  """Returns the slots that ids see in the original, [B, T, P] bool."""
  own = golden.arrays['in/seg_id'][..., None]
  slots = golden.cfg['Lkv']
  blocked = np.zeros((len(own), slots), bool)
  blocked = golden.arrays.get('in/kv_mask', blocked)
  slot = np.arange(slots)
  sees = (slot <= own) & (slot >= own - golden.cfg['lookback'])
  return sees & ~blocked[:, None]


def run_cross(golden, implementation, monkeypatch, make_ours, prefix):
  """Compares ids whose visible slots are a run; with a dense op, all ids."""
  sees = cross_visible(golden)
  own = golden.arrays['in/seg_id']
  is_real = ~golden.arrays.get('in/q_pad_mask', np.zeros(own.shape, bool))
  is_real = is_real & golden.arrays['aux/row_has_allowed_key']
  lowest = np.where(sees.any(-1), sees.argmax(-1), own + 1)
  values_only = False
  if implementation == 'dense':
    # The original zeroes rows of padding, or has no gradient of them.
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
      method=remember_and_cross,
    )

  hold(ours, golden, ['q', 'kv'], is_real, prefix, values_only)


@pytest.mark.golden('c03_*')
@OPS
def test_golden_regular_cross_attention(golden, implementation, monkeypatch):
  stored_tables(monkeypatch, golden, token_positions=True)
  heads, width = golden.cfg['n_heads'], golden.cfg['d_attn']

  def make_ours(p):
    module = regular_module(heads, width, golden.cfg['q_dim'], implementation)
    return module, regular_cross_params(p, heads)

  has_flex = golden.cfg['attention']['kernel'] == 'flex'
  prefix = 'inner.' if has_flex else 'inner.inner.'
  run_cross(golden, implementation, monkeypatch, make_ours, prefix)


@pytest.mark.golden('c04_*', where=lambda x: 'lookback' in x.cfg)
@OPS
def test_golden_latent_cross_attention(golden, implementation, monkeypatch):
  # The original counts positions of queries in ids.
  monkeypatch.setattr(
    LatentAttention,
    'rotary_table',
    lambda self, position: rope_table(
      jnp.arange(position.shape[-1]), self.config.retrieval_dim
    ),
  )

  def make_ours(p):
    form = golden.cfg['attention']
    module = latent_module(
      form, golden.cfg['n_heads'], golden.cfg['q_dim'], implementation
    )
    variables = latent_params(p, 'kv_comp.weight', 'mla.', is_scaled(form))
    return module, variables

  run_cross(golden, implementation, monkeypatch, make_ours, 'inner.')
