import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import QuantizerConfig
from abstractinator.modules.abstractinator import advance
from abstractinator.modules.vector_quantizer import VectorQuantizer

ROWS, SLOTS, WIDTH, NUM_CODES = 4, 5, 8, 6


def make(code_dim):
  config = QuantizerConfig(
    codebook_size=NUM_CODES,
    code_dim=code_dim,
    decay=0.9,
    reset_interval_steps=1,
    reset_after_steps=3,
  )
  model = VectorQuantizer(config, WIDTH, 'xla', jnp.float32)
  x, is_valid, row = make_input()
  return model, model.init(jax.random.key(0), x, is_valid, row)


def make_input(seed=0):
  rng = np.random.default_rng(seed)
  x_BPD = rng.normal(size=(ROWS, SLOTS, WIDTH)).astype(np.float32)
  is_valid_BP = np.arange(SLOTS) < np.array([5, 3, 0, 2])[:, None]
  return (
    jnp.asarray(x_BPD),
    jnp.asarray(is_valid_BP),
    jnp.array([40, 7, 12, 3], jnp.int32),
  )


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_gradient_passes_straight_through():
  model, variables = make(None)
  x, is_valid, row = make_input()
  grad = jax.grad(
    lambda x: model.apply(variables, x, is_valid, row).vectors_BPD.sum()
  )(x)
  np.testing.assert_array_equal(grad, jnp.ones_like(x))


def test_with_a_code_space_the_gradient_is_that_of_the_projections_alone():
  model, variables = make(4)
  x, is_valid, row = make_input()
  weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))

  def quantized(x):
    return jnp.sum(
      weight * model.apply(variables, x, is_valid, row).vectors_BPD
    )

  def projected(x):
    params = variables['params']
    return jnp.sum(
      weight * (x @ params['down']['kernel'] @ params['up']['kernel'])
    )

  np.testing.assert_allclose(
    jax.grad(quantized)(x), jax.grad(projected)(x), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('code_dim', [None, 4])
def test_lookup_gives_the_vectors_of_the_forward_pass(code_dim):
  model, variables = make(code_dim)
  output = model.apply(variables, *make_input())
  # The forward pass adds the entry as y + (entry - y), which rounds.
  np.testing.assert_allclose(
    model.apply(variables, output.codes_BP, method='lookup'),
    output.vectors_BPD,
    atol=2e-6,
  )
  assert len(set(np.ravel(output.codes_BP))) > 2


def test_codes_are_the_nearest_entries_and_distances_reach_the_input_only():
  model, variables = make(None)
  x, is_valid, row = make_input()
  output = model.apply(variables, x, is_valid, row)
  entries = np.asarray(variables['vq']['state'].codebook_KC)
  distance = np.mean(np.square(np.asarray(x)[:, :, None] - entries), axis=-1)
  np.testing.assert_array_equal(output.codes_BP, distance.argmin(-1))
  np.testing.assert_allclose(output.distance_BP, distance.min(-1), rtol=1e-5)
  grad = jax.grad(
    lambda x: model.apply(variables, x, is_valid, row).distance_BP.sum()
  )(x)
  np.testing.assert_allclose(
    grad, 2 * (x - entries[output.codes_BP]) / WIDTH, rtol=1e-5, atol=1e-6
  )


def test_evaluation_changes_nothing_and_training_only_the_sums_of_the_step():
  model, variables = make(4)
  args = make_input()
  quiet = model.apply(variables, *args)
  output, collections = model.apply(variables, *args, mutable=['vq'])
  assert_same(quiet, output)
  before, after = variables['vq']['state'], collections['vq']['state']
  sums = {'hits_K', 'sum_KC', 'priority_R', 'candidate_RC'}
  for name in vars(before):
    is_same = np.array_equal(getattr(before, name), getattr(after, name))
    assert is_same == (name not in sums), name
  # A second pass of the same step quantizes with the same codebook.
  again = model.apply(variables | collections, *args)
  assert_same(quiet, again)


def test_empty_slots_touch_nothing():
  model, variables = make(4)
  x, is_valid, row = make_input()
  other = jnp.where(is_valid[..., None], x, jnp.float32(1e6))
  (output, collections), (output_2, collections_2) = (
    model.apply(variables, x, is_valid, row, mutable=['vq']) for x in (x, other)
  )
  assert_same(collections, collections_2)
  assert_same(advance(collections), advance(collections_2))
  np.testing.assert_array_equal(
    output.vectors_BPD[is_valid], output_2.vectors_BPD[is_valid]
  )
  assert float(collections['vq']['state'].hits_K.sum()) == 10


def test_microbatches_add_up_to_the_batch():
  model, variables = make(4)
  args = make_input()
  whole, together = model.apply(variables, *args, mutable=['vq'])
  collections, codes = {'vq': variables['vq']}, []
  for row in (2, 0, 3, 1):
    part, collections = model.apply(
      variables | collections,
      *(x[row : row + 1] for x in args),
      mutable=['vq'],
    )
    codes.append((row, part.codes_BP[0]))
  np.testing.assert_array_equal(
    whole.codes_BP, [code for _, code in sorted(codes, key=lambda c: c[0])]
  )
  assert_states_agree(together['vq']['state'], collections['vq']['state'])
  assert_states_agree(
    advance(together)['vq']['state'], advance(collections)['vq']['state']
  )


def assert_states_agree(a, b):
  """Equal, up to the rounding of sums."""
  for name, value in vars(a).items():
    if name in ('sum_KC', 'ema_sum_KC', 'codebook_KC', 'candidate_RC'):
      np.testing.assert_allclose(value, getattr(b, name), atol=1e-6)
    elif name == 'reservoir_RC':
      np.testing.assert_allclose(value, getattr(b, name), atol=1e-6)
    else:
      np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)
