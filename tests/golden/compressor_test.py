"""The compressor against the original's numbers, part by part and whole.

Each part is given the recorded output of the part before it, so that one
difference does not hide another; gradients pass through the whole compression
path. Blocks are the original's around our attention and SwiGLU, as in
`golden_attention`; the entropy model has its own tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model import attention as attention_lib
from abstractinator.model import layers
from tests.golden.pool_test import pool, real_index
from tests.golden.segmentation_test import divide
from tests.helpers.golden_attention import OriginalBlock
from tests.helpers.golden_parts import (
  below,
  close,
  close_gradients,
  dense_attention,
  in_order,
)
from tests.helpers.golden_quantizers import module, state_of
from tests.helpers.jitted import jit_to_numpy

pytestmark = pytest.mark.usefixtures('rounded_tables')

# Absolute tolerances of values and of gradients.
VALUE, GRADIENT = 1e-4, 1e-3
# Weight of the commitment loss in the original.
BETA = 0.25


def parameters(golden):
  return {k: jnp.asarray(v) for k, v in golden.group('param').items()}


def has_quantizer(golden):
  return 'param/quantizer.stages.0.codebook' in golden.arrays


def has_inverted_mask(golden):
  """Returns True for sliding latent attention with sdpa: a wrong mask."""
  form = golden.cfg['attention']
  return (form['variant'], form['kernel']) == ('mla', 'sdpa')


def use_their_mask(golden, monkeypatch):
  """Puts the original's mask in the place of ours if it is inverted."""
  if has_inverted_mask(golden):
    is_real, window = golden.arrays['aux/valid'], golden.cfg['ctor']['window']
    size = is_real.shape[1]
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    sees = jnp.asarray((distance >= 0) & (distance <= window))
    op = dense_attention(~sees[None], jnp.asarray(is_real))
    monkeypatch.setattr(attention_lib, 'attention', op)


def states(golden, p):
  """Runs the embedding and the sliding blocks, [B, S, D]."""
  ctor, form = golden.cfg['ctor'], golden.cfg['attention']
  ids_BS = jnp.asarray(golden.arrays['in/ids'])
  is_real = golden.arrays['aux/valid']
  group_BS = jnp.asarray(np.where(is_real, 0, -1), jnp.int32)
  table = p['embedding_comp.weight']
  x = layers.embed(*table.shape, jnp.float32).apply(
    {'params': {'embedding': table}}, ids_BS
  )
  pattern = r'compression_layers\.(\d+)\.inner\.(block\.)?'
  prefixes = in_order(pattern, p)
  assert len(prefixes) == ctor['num_compression_encoder_layers']
  for prefix in prefixes:
    block = OriginalBlock(
      below(p, prefix),
      form,
      heads=ctor['heads'],
      width=ctor['dim'],
      window=ctor['window'],
    )
    x = block(x, group_BS)
  return x


def pooled(golden, p, states_BSD):
  """Pools each recorded segment by each query, [B, U, D]."""
  ctor = golden.cfg['ctor']
  index_BS = real_index(golden, golden.arrays['out/seg_id'])
  num_slots = golden.cfg['Q_max'] // ctor['num_queries']
  return pool(
    below(p, 'pooler.'), ctor['heads'], 'xla', states_BSD, index_BS, num_slots
  )


def quantized(golden, p, pooled_BUD):
  """Our quantizer with the codebooks of the file; all rows count, as there."""
  sizes = p['quantizer.stages.0.codebook'].shape
  depth = len([name for name in p if name.endswith('.codebook')])
  is_forbidden_K = p['quantizer.stages.0.forbidden_mask']
  model = module(
    'rvq',
    dict(zip('KD', sizes, strict=True)),
    depth=depth,
    forbidden=tuple(np.flatnonzero(is_forbidden_K).tolist()),
  )
  arrays = {k: np.asarray(v) for k, v in p.items()}
  state = {
    f'stage{i}': {'state': state_of(arrays, f'quantizer.stages.{i}.', 0.9)}
    for i in range(depth)
  }
  everything = jnp.ones(pooled_BUD.shape[:2], bool)
  rows = jnp.arange(len(pooled_BUD))
  return model.apply({'vq': state}, pooled_BUD, everything, rows), depth


def compiled(part, golden, *args):
  """Runs a part with the parameters of the file, as numpy arrays."""
  return jit_to_numpy(functools.partial(part, golden, parameters(golden)))(
    *args
  )


@pytest.mark.golden('c10_*')
def test_golden_states(golden, monkeypatch):
  is_real, want = golden.arrays['aux/valid'], golden.arrays['out/hidden_states']
  if has_inverted_mask(golden):
    with pytest.raises(AssertionError, match='Mismatched elements'):
      close(compiled(states, golden)[is_real], want[is_real], VALUE)
  use_their_mask(golden, monkeypatch)
  close(compiled(states, golden)[is_real], want[is_real], VALUE)


@pytest.mark.golden('c10_*')
def test_golden_divisions(golden):
  """Recorded entropies are taken for those of the id itself."""
  is_real = golden.arrays['aux/valid']
  delta = golden.cfg['ctor']['entropy_delta']
  (segments,) = divide(
    golden.arrays['out/entropy_bits'], {'entropy_delta': delta}
  )
  for got, name in (
    (segments.index_BS, 'seg_id'),
    (segments.is_end_BS, 'patch_end_mask'),
  ):
    want = golden.arrays[f'out/{name}']
    np.testing.assert_array_equal(np.asarray(got)[is_real], want[is_real])


@pytest.mark.golden('c10_*')
def test_golden_pooled_vectors(golden):
  hidden_BSD = jnp.asarray(golden.arrays['out/hidden_states'])
  got = compiled(pooled, golden, hidden_BSD)
  close(got, golden.arrays['out/pre_vq_embeddings'], VALUE)
  is_valid = golden.arrays['out/valid_mask']
  np.testing.assert_array_equal(np.abs(got).max(-1) > 0, is_valid)


@pytest.mark.golden('c10_*', where=has_quantizer)
def test_golden_codes_and_vectors(golden):
  """Codes of segments; empty slots have a padding code in the original."""
  pooled_BUD = jnp.asarray(golden.arrays['out/pre_vq_embeddings'])
  output, _ = compiled(quantized, golden, pooled_BUD)
  is_valid = golden.arrays['out/valid_mask']
  codes = np.asarray(output.codes_BP)[is_valid]
  np.testing.assert_array_equal(
    codes, golden.arrays['out/vq_indices'][is_valid]
  )
  close(
    output.vectors_BPD[is_valid],
    golden.arrays['out/vq_embeddings'][is_valid],
    VALUE,
  )
  # In the original empty slots count, too.
  loss = (1 + BETA) * jnp.mean(output.distance_BP)
  close(loss, golden.arrays['out/vq_loss'], VALUE)


@pytest.mark.golden('c10_*')
def test_golden_gradients_of_the_compression_path(golden, monkeypatch):
  """Gradients from ids to codes, with the recorded segments.

  The original's gradient through the quantizer is `depth` times too large.
  Files without gradients have the values at the end of the path.
  """
  use_their_mask(golden, monkeypatch)
  p, arrays = parameters(golden), golden.arrays
  is_valid = jnp.asarray(arrays['out/valid_mask'])
  is_real = jnp.asarray(arrays['aux/valid'])
  names = ('embedding_comp.', 'compression_layers.', 'pooler.')
  learned = {k: v for k, v in p.items() if k.startswith(names)}

  def weight(name):
    return arrays.get(f'cot/{name}', np.zeros_like(arrays[f'out/{name}']))

  def run(learned):
    states_BSD = states(golden, p | learned)
    vectors_BUD = pooled(golden, p | learned, states_BSD)
    loss, depth = 0.0, 1
    if has_quantizer(golden):
      output, depth = quantized(golden, p, vectors_BUD)
      vectors_BUD = output.vectors_BPD
      loss = BETA * jnp.mean(output.distance_BP)
    loss += depth * jnp.sum(
      jnp.where(is_valid[..., None], vectors_BUD * weight('vq_embeddings'), 0)
    )
    # States of padding are arbitrary in the original; their weight is zero.
    loss += jnp.sum(
      jnp.where(is_real[..., None], states_BSD * weight('hidden_states'), 0)
    )
    return loss, vectors_BUD

  grads, vectors_BUD = jax.jit(jax.grad(run, has_aux=True))(learned)
  close(vectors_BUD[is_valid], arrays['out/vq_embeddings'][is_valid], VALUE)
  wanted = golden.group('grad')
  if wanted:
    wanted = {k: x for k, x in wanted.items() if k.startswith(names)}
    close_gradients(grads, wanted, GRADIENT)
