"""Composed codes, their vectors and scores, against the original's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import digits as digits_lib
from abstractinator.ops import stage_logits as stage_logits_lib
from tests.helpers.golden_quantizers import PAD, module


def heads(golden):
  """Returns our module with the codebooks of a file."""
  size, depth = golden.cfg['K'], golden.cfg['depth']
  model = module('rvq', golden.cfg, depth=depth, codebook='gradient')
  params = {
    f'stage{i}': {
      'codebook': {'embedding': golden.arrays[f'param/stages.{i}.codebook']}
    }
    for i in range(depth)
  }
  assert model.config.num_codes == size**depth
  return model, params


def stage_logits(quantizer, h, digits, **options):
  """Returns the scores of entries for predicted vectors."""
  return stage_logits_lib.stage_logits(
    quantizer.to_code_space(h), quantizer.codebooks(), digits, **options
  )


@pytest.mark.golden('c08_*', where=lambda x: 'steps' not in x.cfg)
def test_golden_codec(golden):
  ids, sizes = golden.arrays['in/ids'], (golden.cfg['K'],) * golden.cfg['depth']
  found = digits_lib.decompose(jnp.asarray(ids), sizes)
  want = golden.group('out/digits')
  for i in range(len(sizes)):
    np.testing.assert_array_equal(found[..., i], want[str(i)])
  np.testing.assert_array_equal(
    digits_lib.compose(found, sizes), golden.arrays['out/recomposed']
  )


@pytest.mark.golden('c08_*', where=lambda x: 'steps' not in x.cfg)
def test_golden_embedding_of_codes(golden):
  """The original takes 258 for padding even if it is a code."""
  model, params = heads(golden)
  ids = golden.arrays['in/ids']
  is_code = jnp.asarray(ids != PAD)

  def embed(params):
    return model.apply({'params': params}, jnp.asarray(ids), method='lookup')

  np.testing.assert_allclose(
    embed(params)[is_code], golden.arrays['out/embed'][is_code], atol=2e-5
  )
  weight = golden.arrays['cot/embed'] * is_code[..., None]
  grads = jax.grad(lambda p: jnp.sum(embed(p) * weight))(params)
  for i in range(golden.cfg['depth']):
    np.testing.assert_allclose(
      grads[f'stage{i}']['codebook']['embedding'],
      golden.arrays[f'grad_embed/stages.{i}.codebook'],
      atol=2e-4,
    )


@pytest.mark.golden('c08_*', where=lambda x: 'steps' not in x.cfg)
@pytest.mark.parametrize('has_teacher', [True, False])
@pytest.mark.parametrize('squared', [True, False])
@pytest.mark.parametrize('conditioned', [True, False])
def test_golden_stage_logits(golden, conditioned, squared, has_teacher):
  model, params = heads(golden)
  depth, arrays = golden.cfg['depth'], golden.arrays
  flags = f'rc={conditioned}|sq={squared}'
  teacher = jnp.stack([arrays[f'in/teacher/{i}'] for i in range(depth)], -1)

  def run(params, h):
    found = model.apply(
      {'params': params},
      h,
      teacher if has_teacher else None,
      residual_conditioning=conditioned,
      distance='squared' if squared else 'dot',
      method=stage_logits,
    )
    loss = sum(
      jnp.sum(x * arrays[f'cot/logits/{i}']) for i, x in enumerate(found.logits)
    )
    return loss, found

  grads, found = jax.grad(run, argnums=(0, 1), has_aux=True)(
    params, jnp.asarray(arrays['in/h'])
  )
  name = f'{flags}|teacher={has_teacher}'
  for i in range(depth):
    np.testing.assert_allclose(
      found.logits[i],
      arrays[f'out/logits|{name}/{i}'],
      rtol=2e-6,
      atol=2e-5,
    )
    np.testing.assert_array_equal(
      found.digits_M[..., i], found.logits[i].argmax(-1)
    )
    np.testing.assert_allclose(
      grads[0][f'stage{i}']['codebook']['embedding'],
      arrays[f'grad|{name}/stages.{i}.codebook'],
      atol=2e-4,
    )
    # The original has no greedy digits without residual conditioning.
    if conditioned and not has_teacher:
      np.testing.assert_array_equal(
        found.digits_M[..., i], arrays[f'out/greedy|{flags}/{i}']
      )
  np.testing.assert_allclose(grads[1], arrays[f'grad_in/h|{name}'], atol=2e-4)
