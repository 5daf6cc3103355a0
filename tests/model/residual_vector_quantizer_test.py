"""Residual vector quantizers, and the scores of their stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.pyramid import advance_collections
from abstractinator.ops import stage_logits as stage_logits_lib
from tests.helpers import tiny_quantizer
from tests.helpers.jitted import init
from tests.helpers.tiny_quantizer import WIDTH, inputs


def make(**changes):
  model = tiny_quantizer.model(kind='rvq', **changes)
  return model, dict(init(model, jax.random.key(0), *inputs()))


def stage_logits(quantizer, x, digits, **options):
  """Returns scores of entries for vectors that are projected like an input."""
  return stage_logits_lib.stage_logits(
    quantizer.to_code_space(x), quantizer.codebooks(), digits, **options
  )


def entries_of(variables):
  return [
    np.asarray(variables['vq'][f'stage{i}']['state'].codebook_KC)
    for i in range(len(variables['vq']))
  ]


def test_each_stage_quantizes_what_the_ones_before_it_leave():
  model, variables = make(depth=3)
  x, is_valid, row = inputs()
  output, collections = model.apply(variables, x, is_valid, row, mutable=['vq'])
  rest = np.asarray(x, np.float64)
  total, distance = np.zeros_like(rest), 0.0
  for stage, entries in enumerate(entries_of(variables)):
    digit = np.square(rest[:, :, None] - entries).sum(-1).argmin(-1)
    np.testing.assert_array_equal(output.digits_BPM[..., stage], digit)
    hits = np.bincount(digit[np.asarray(is_valid)], minlength=6)
    state = collections['vq'][f'stage{stage}']['state']
    np.testing.assert_array_equal(state.hits_K, hits)
    total += entries[digit]
    rest = rest - entries[digit]
    distance += np.square(rest).mean(-1)
  np.testing.assert_allclose(output.vectors_BPD, total, atol=2e-6)
  np.testing.assert_allclose(output.distance_BP, distance, rtol=1e-5)
  digits = np.asarray(output.digits_BPM)
  np.testing.assert_array_equal(
    output.codes_BP, digits[..., 0] + 6 * digits[..., 1] + 36 * digits[..., 2]
  )


def test_one_stage_is_a_vector_quantizer():
  model, variables = make(depth=1)
  single = tiny_quantizer.model()
  state = variables['vq']['stage0']
  a, after = model.apply(variables, *inputs(), mutable=['vq'])
  b, single_after = single.apply({'vq': state}, *inputs(), mutable=['vq'])
  jax.tree.map(np.testing.assert_array_equal, a, b)
  jax.tree.map(
    np.testing.assert_array_equal, after['vq']['stage0'], single_after['vq']
  )


def test_more_stages_come_closer():
  """Normal vectors, 64 entries per stage, 40 steps."""
  rng = np.random.default_rng(0)
  errors = []
  for depth in (1, 2, 3):
    model = tiny_quantizer.model(
      kind='rvq', depth=depth, codebook_size=64, decay=0.9, reset_after_steps=9
    )
    args = jnp.ones((4, 64), bool), jnp.arange(4)
    x = jnp.asarray(rng.normal(size=(4, 64, WIDTH)), jnp.float32)
    variables = model.init(jax.random.key(0), x, *args)

    @jax.jit
    def step(variables, x, model=model, args=args):
      output, collections = model.apply(variables, x, *args, mutable=['vq'])
      return output, {**variables, **advance_collections(collections)}

    for _ in range(40):
      x = jnp.asarray(rng.normal(size=(4, 64, WIDTH)), jnp.float32)
      output, variables = step(variables, x)
    errors.append(float(jnp.mean(jnp.square(output.vectors_BPD - x))))
  assert errors[0] < 0.7
  assert errors[1] < 0.75 * errors[0]
  assert errors[2] < 0.75 * errors[1]


@pytest.mark.parametrize('distance', ['dot', 'squared'])
@pytest.mark.parametrize('residual_conditioning', [False, True])
@pytest.mark.parametrize('has_digits', [False, True])
def test_stage_logits_project_like_an_input(
  distance, residual_conditioning, has_digits
):
  model, variables = make(depth=2, code_dim=4)
  x, *_ = inputs()
  digits = jnp.asarray(np.random.default_rng(3).integers(0, 6, (4, 5, 2)))
  found = model.apply(
    variables,
    x,
    digits if has_digits else None,
    residual_conditioning=residual_conditioning,
    distance=distance,
    method=stage_logits,
  )
  rest = np.asarray(x @ variables['params']['down']['kernel'], np.float64)
  for stage, entries in enumerate(entries_of(variables)):
    if distance == 'dot':
      want = rest @ entries.T
    else:
      want = -np.square(rest[:, :, None] - entries).sum(-1)
    np.testing.assert_allclose(found.logits[stage], want, atol=2e-5)
    best = want.argmax(-1)
    np.testing.assert_array_equal(found.digits_M[..., stage], best)
    if residual_conditioning:
      rest -= entries[digits[..., stage] if has_digits else best]


def test_squared_distances_find_the_digits_of_an_input():
  model, variables = make(depth=3)
  x, is_valid, row = inputs()
  found = model.apply(
    variables,
    x,
    None,
    residual_conditioning=True,
    distance='squared',
    method=stage_logits,
  )
  output = model.apply(variables, x, is_valid, row)
  np.testing.assert_array_equal(found.digits_M, output.digits_BPM)


def test_a_vector_quantizer_has_the_logits_of_its_one_stage():
  model, variables = make(depth=1, code_dim=4)
  single = tiny_quantizer.model(code_dim=4)
  variables_of_single = {**variables, 'vq': variables['vq']['stage0']}
  args = (inputs()[0], None)
  options = dict(residual_conditioning=False, distance='dot')
  a = model.apply(variables, *args, **options, method=stage_logits)
  b = single.apply(variables_of_single, *args, **options, method=stage_logits)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_unknown_distance_is_an_error():
  model, variables = make(depth=1)
  with pytest.raises(ValueError, match=r"'cosine'.*dot, squared"):
    model.apply(
      variables,
      inputs()[0],
      None,
      residual_conditioning=False,
      distance='cosine',
      method=stage_logits,
    )


def test_kmeans_starts_a_stage_one_step_after_the_one_before_it():
  """Residuals mean nothing before the earlier stages have their entries."""
  _, variables = make(depth=3, start='kmeans')
  stages = variables['vq'].values()
  assert [stage['state'].kmeans_step for stage in stages] == [0, 1, 2]
