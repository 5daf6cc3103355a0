"""Pooling against the original's numbers.

Original: LearnedQueryAttention with its flex kernel, which gives zeros in empty
slots. Segments past the last slot get no vector in either; in ours the capacity
of a row prevents them.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.pooling import LearnedQueryAttention
from abstractinator.ops.segment_pool import segment_pool
from tests.helpers.golden_attention import REFERENCE, VALUE, hold
from tests.helpers.golden_parts import close
from tests.helpers.implementations import BY_NAME


def pool(p, heads, implementation, x_BSD, index_BS, num_slots):
  """Runs our pooling with the original's parameters."""
  queries, width = p['query_template'].shape
  params = {
    name: {'kernel': p[f'{name}_proj.weight'].T.reshape(width, heads, -1)}
    for name in 'qkv'
  }
  params |= {
    'query': p['query_template'].reshape(-1),
    'in_norm': {'scale': p['in_norm.weight']},
    'out_norm': {'scale': p['out_norm.weight']},
    'out': {'kernel': p['out_proj.weight'].T},
  }
  module = LearnedQueryAttention(
    heads, queries, BY_NAME[implementation], jnp.float32
  )
  return module.apply({'params': params}, x_BSD, index_BS, num_slots)


def real_index(golden, seg_id):
  """Returns the segment of each id, -1 on padding."""
  padding = golden.arrays.get('in/key_padding_mask', np.zeros_like(seg_id))
  return jnp.asarray(np.where(padding, -1, seg_id), jnp.int32)


@pytest.mark.golden('c05_pool_*')
@pytest.mark.parametrize('implementation', [REFERENCE, 'xla'])
def test_golden_pooling(golden, implementation):
  cfg = golden.cfg
  index_BS = real_index(golden, golden.arrays['in/seg_id'])
  num_slots, rest = divmod(cfg['max_queries'], cfg['num_queries_per_segment'])
  assert rest == 0

  def ours(p, x):
    return pool(p, cfg['num_heads'], implementation, x, index_BS, num_slots)

  everything = np.ones(golden.arrays['out/y'].shape[:2], bool)
  hold(ours, golden, ['x'], everything, '')
  params = {k: jnp.asarray(v) for k, v in golden.group('param').items()}
  out = np.asarray(ours(params, jnp.asarray(golden.arrays['in/x'])))
  is_valid = golden.arrays['out/valid_q']
  np.testing.assert_array_equal(out[~is_valid], 0)
  # With padding before the first id, the first slots have no ids.
  queries = cfg['num_queries_per_segment']
  slots = np.repeat(np.arange(num_slots), queries)
  has_ids = (np.asarray(index_BS)[:, :, None] == slots).any(1)
  np.testing.assert_array_equal(out[~has_ids], 0)
  assert np.abs(out[has_ids]).max(-1).min() > 1e-3


@pytest.mark.golden('c06_*')
@pytest.mark.parametrize('implementation', [REFERENCE, 'xla'])
def test_golden_softmax_of_what_is_not_masked(golden, implementation):
  """A row that is masked everywhere gives zeros; True means masked there."""
  score_BS = jnp.asarray(golden.arrays['in/softmax_scores'])
  is_masked = golden.arrays['in/softmax_mask']
  size = score_BS.shape[1]
  one_hot = jnp.eye(size)[None, :, None]
  weight = segment_pool(
    score_BS[..., None, None],
    jnp.broadcast_to(one_hot, (len(score_BS), size, 1, size)),
    jnp.asarray(np.where(is_masked, -1, 0)),
    num_slots=1,
    implementation=implementation,
  )
  assert is_masked.all(1).any()
  close(weight[:, 0, 0, 0], golden.arrays['out/safe_softmax'], VALUE)
