"""Properties of every quantizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.pyramid import advance_collections
from abstractinator.ops import digits as digits_lib
from tests.helpers import tiny_quantizer
from tests.helpers.jitted import init
from tests.helpers.tiny_quantizer import VARIANTS, WITH_STATE, inputs


@functools.cache
def make(variant):
  model = tiny_quantizer.model(**VARIANTS[variant])
  return model, dict(init(model, jax.random.key(0), *inputs()))


@functools.cache
def compiled(model, **kwargs):
  return jax.jit(functools.partial(model.apply, **kwargs))


def apply(model, *args, **kwargs):
  return compiled(model, **kwargs)(*args)


advance = jax.jit(advance_collections)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def states(collections):
  """Returns the codebooks of a collection, by stage."""
  return jax.tree.leaves(collections, is_leaf=lambda x: hasattr(x, 'hits_K'))


# Others have their options: a code space and k-means in `rvq kmeans`, the unit
# length of a code space in `vq cosine`, a single stage in `vq`.
AT_NIGHT = ('vq code space', 'vq kmeans', 'rvq cosine', 'rvq of one stage')


def each(variants):
  return pytest.mark.parametrize(
    'variant',
    [
      pytest.param(name, marks=[pytest.mark.nightly] * (name in AT_NIGHT))
      for name in variants
    ],
  )


all_variants, with_state = each(VARIANTS), each(WITH_STATE)


@all_variants
def test_codes_are_made_of_digits_and_lookup_gives_their_vectors(variant):
  model, variables = make(variant)
  sizes = model.config.stage_sizes
  output = apply(model, variables, *inputs())
  codes, digits = np.asarray(output.codes_BP), np.asarray(output.digits_BPM)
  assert digits.shape == (*codes.shape, len(sizes))
  assert digits.dtype == codes.dtype == np.int32
  assert digits.min() >= 0
  assert (digits < np.array(sizes)).all()
  np.testing.assert_array_equal(codes, digits_lib.compose(digits, sizes))
  # The forward pass adds the entry as y + (entry - y), which rounds.
  np.testing.assert_allclose(
    apply(model, variables, output.codes_BP, method='lookup'),
    output.vectors_BPD,
    atol=3e-6,
  )
  assert len(set(codes.ravel())) > 2


@all_variants
def test_the_gradient_is_that_of_the_projections_alone(variant):
  """It is as if nothing were quantized, whatever the number of stages."""
  model, variables = make(variant)
  x, is_valid, row = inputs()
  weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)

  def quantized(x):
    return jnp.sum(
      weight * apply(model, variables, x, is_valid, row).vectors_BPD
    )

  def projected(x):
    if model.config.code_dim is not None or model.config.kind == 'fsq':
      params = variables['params']
      x = x @ params['down']['kernel']
    if model.config.cosine:
      length = jnp.linalg.norm(x, axis=-1, keepdims=True)
      x = x * np.sqrt(x.shape[-1]) / length
    if model.config.kind == 'fsq':
      size = np.array(model.config.levels)
      half = (size - 1) * (1 - 1e-3) / 2
      offset = np.where(size % 2 == 0, 0.5, 0)
      x = (jnp.tanh(x + np.tan(offset / half)) * half - offset) / (size // 2)
    if model.config.code_dim is not None or model.config.kind == 'fsq':
      x = x @ params['up']['kernel']
    return jnp.sum(weight * x)

  got, want = jax.grad(quantized)(x), jax.grad(projected)(x)
  if not (variables.get('params') and 'down' in variables['params']) and (
    not model.config.cosine
  ):
    np.testing.assert_array_equal(got, weight)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@all_variants
def test_evaluation_changes_nothing_and_training_only_the_sums(variant):
  model, variables = make(variant)
  assert ('vq' in variables) == (variant in WITH_STATE)
  quiet = apply(model, variables, *inputs())
  output, collections = apply(model, variables, *inputs(), mutable='vq')
  assert_same(quiet, output)
  sums = {'hits_K', 'sum_KC', 'priority_R', 'candidate_RC'}
  before = states(variables.get('vq', {}))
  after = states(collections)
  assert len(before) == len(after)
  for old, new in zip(before, after, strict=True):
    for name in vars(old):
      is_same = np.array_equal(getattr(old, name), getattr(new, name))
      assert is_same == (name not in sums), name
  # A second pass of the same step quantizes with the same codebook.
  assert_same(quiet, apply(model, variables | collections, *inputs()))


@with_state
def test_empty_slots_change_no_bit(variant):
  model, variables = make(variant)
  x, is_valid, row = inputs()
  other = jnp.where(is_valid[..., None], x, jnp.float32(1e6))
  # More empty slots, and an empty row.
  row_more = jnp.append(row, 99)
  (output, collections), (output_2, collections_2) = (
    apply(model, variables, x, is_valid, row, mutable='vq') for x in (x, other)
  )
  assert_same(collections, collections_2)
  assert_same(advance(collections), advance(collections_2))
  np.testing.assert_array_equal(
    output.vectors_BPD[is_valid], output_2.vectors_BPD[is_valid]
  )
  _, collections_3 = apply(
    model,
    variables,
    jnp.pad(other, ((0, 1), (0, 0), (0, 0)), constant_values=7.0),
    jnp.pad(is_valid, ((0, 1), (0, 0))),
    row_more,
    mutable='vq',
  )
  assert_same(collections, collections_3)
  for state in states(collections):
    assert float(state.hits_K.sum()) == sum(tiny_quantizer.COUNTS)


@with_state
def test_four_microbatches_make_the_state_of_the_batch(variant):
  model, variables = make(variant)
  together = {'vq': variables['vq']}
  apart = {'vq': variables['vq']}
  for seed in range(3):
    args = inputs(seed)
    whole, together = apply(model, variables | together, *args, mutable='vq')
    codes = {}
    for row in (2, 0, 3, 1):
      part, apart = apply(
        model,
        variables | apart,
        *(x[row : row + 1] for x in args),
        mutable='vq',
      )
      codes[row] = part.codes_BP[0]
    valid = np.asarray(args[1])
    np.testing.assert_array_equal(
      np.asarray(whole.codes_BP)[valid],
      np.stack([codes[row] for row in range(4)])[valid],
    )
    together, apart = advance(together), advance(apart)
    for a, b in zip(states(together), states(apart), strict=True):
      assert_states_agree(a, b)


def assert_states_agree(a, b):
  """Asserts that states are equal, up to the rounding of sums."""
  for name, value in vars(a).items():
    if name in ('ema_sum_KC', 'codebook_KC', 'reservoir_RC'):
      np.testing.assert_allclose(value, getattr(b, name), atol=2e-6)
    else:
      np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


@pytest.mark.parametrize('variant', ['vq cosine', 'rvq cosine'])
def test_only_the_direction_counts_with_cosine(variant):
  model, variables = make(variant)
  x, is_valid, row = inputs()
  scale = jnp.asarray(np.random.default_rng(2).uniform(0.1, 50, x.shape[:2]))
  output = apply(model, variables, x, is_valid, row)
  scaled = apply(model, variables, x * scale[..., None], is_valid, row)
  np.testing.assert_array_equal(output.codes_BP, scaled.codes_BP)
  np.testing.assert_allclose(output.vectors_BPD, scaled.vectors_BPD, atol=2e-6)
  # Vectors of length 0 have finite gradients.
  grad = jax.grad(
    lambda x: apply(model, variables, x, is_valid, row).vectors_BPD.sum()
  )(jnp.zeros_like(x))
  assert np.isfinite(grad).all()


def test_without_cosine_the_length_counts():
  model, variables = make('vq')
  x, is_valid, row = inputs()
  codes = [
    apply(model, variables, scale * x, is_valid, row).codes_BP
    for scale in (0.1, 10.0)
  ]
  assert (codes[0] != codes[1]).any()


@pytest.mark.parametrize('variant', ['vq gradient', 'rvq gradient'])
def test_a_codebook_learned_by_gradient_moves_to_its_vectors(variant):
  model, variables = make(variant)
  args = inputs()
  assert set(variables) == {'params'}

  def loss(params):
    output = apply(model, {'params': params}, *args)
    return jnp.sum(output.codebook_distance_BP), output

  before = None
  params = variables['params']
  for _ in range(30):
    (value, output), grads = jax.value_and_grad(loss, has_aux=True)(params)
    before = value if before is None else before
    params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
  assert float(value) < 0.7 * float(before)
  # The commitment loss is the same number, and leaves the codebook alone.
  np.testing.assert_array_equal(output.codebook_distance_BP, output.distance_BP)
  still = jax.grad(
    lambda p: apply(model, {'params': p}, *args).distance_BP.sum()
  )(params)
  assert not any(np.any(g) for g in jax.tree.leaves(still))
  toward = jax.grad(
    lambda x: apply(
      model, {'params': params}, x, *args[1:]
    ).codebook_distance_BP.sum()
  )(args[0])
  assert not np.any(toward)


@each([*WITH_STATE, 'fsq'])
def test_no_other_codebook_learns_by_gradient(variant):
  model, variables = make(variant)
  output = apply(model, variables, *inputs())
  assert not np.any(output.codebook_distance_BP)
  assert np.any(output.distance_BP) == (variant != 'fsq')


@pytest.mark.parametrize('kind', ['vq', 'rvq'])
def test_forbidden_codes_are_never_chosen_and_protected_ones_never_moved(kind):
  """Vectors lie on the entries; every step replaces dead entries."""
  model = tiny_quantizer.model(
    kind=kind, forbidden=(1, 4), protected=(0,), reset_after_steps=1
  )
  variables = model.init(jax.random.key(0), *inputs())

  def first_stage(variables):
    return variables['vq'].get('stage0', variables['vq'])['state']

  start = first_stage(variables).codebook_KC
  entries = jnp.resize(start, (4, 5, 8))
  is_valid, row = jnp.ones((4, 5), bool), jnp.arange(4)
  quiet = apply(model, variables, entries, is_valid, row)
  assert set(np.ravel(quiet.digits_BPM[..., 0])) == {0, 2, 3, 5}
  chosen = set()
  for seed in range(8):
    rng = np.random.default_rng(seed)
    # Far from entry 0, which so is dead all the time.
    x = 5 * start[4] + rng.normal(size=(4, 5, 8)).astype(np.float32)
    output, collections = apply(
      model, variables, x, is_valid, row, mutable='vq'
    )
    variables = variables | advance(collections)
    chosen |= set(np.ravel(output.digits_BPM[..., 0]))
  assert chosen
  assert chosen <= {2, 3, 5}
  after = first_stage(variables).codebook_KC
  moved = np.abs(after - start).max(axis=1) > 1e-2
  np.testing.assert_array_equal(moved, [False, False, True, True, False, True])
