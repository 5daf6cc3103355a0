"""Losses of a top LM: first values, gradients, and a sequence learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator.objective import losses, metrics
from abstractinator.ops import digits as digits_lib
from tests.helpers import tiny_top_lm
from tests.helpers.jitted import jit
from tests.helpers.tiny_top_lm import SLOTS, kinds, make, make_sequence, modes


@kinds
def test_the_first_loss_is_that_of_a_uniform_guess(kind):
  lm, sequence = make('discrete', kind), make_sequence(kind)
  terms = lm.terms(lm.initial, sequence)
  count = float((sequence.document_BP >= 0).sum())
  codes = np.prod(lm.sizes) // (2 if kind == 'forbidden' else 1)
  np.testing.assert_allclose(
    terms['top_lm_code'] / count, np.log(codes), rtol=0.03
  )
  # A logit of 0.1 costs 0.05 if it is always wrong.
  np.testing.assert_allclose(terms['top_lm_end'] / count, np.log(2), atol=0.05)
  assert terms['top_lm_vector'] == 0


@modes
def test_no_gradient_reaches_inputs_and_targets(mode):
  lm, sequence = make(mode), make_sequence()

  def run(vectors):
    return lm.loss(lm.variables, sequence.replace(vectors_BPD=vectors))

  run, gradient = jit(run), jit(jax.grad(run))
  assert not np.any(gradient(sequence.vectors_BPD))
  moved = run(sequence.vectors_BPD.at[0, 1].add(0.5))
  assert abs(moved - run(sequence.vectors_BPD)) > 1e-3


@pytest.mark.parametrize(
  ('mode', 'form'),
  [
    ('discrete', 'mla'),
    ('continuous', 'regular'),
    # Both modes and both forms are above.
    pytest.param('discrete', 'regular', marks=pytest.mark.nightly),
    pytest.param('continuous', 'mla', marks=pytest.mark.nightly),
  ],
)
def test_gradients_hold_numerically(mode, form):
  """They are compared along one direction that moves every parameter."""
  lm, sequence = make(mode, 'rvq', form), make_sequence()
  rng = np.random.default_rng(6)
  direction = jax.tree.map(
    lambda x: jnp.float32(0.1 * rng.normal(size=x.shape)), lm.initial
  )

  def both(variables, direction):
    def at(distance):
      moved = jax.tree.map(lambda x, d: x + distance * d, variables, direction)
      return lm.loss(moved, sequence)

    grads = jax.grad(lm.loss)(variables, sequence)
    products = jax.tree.map(jnp.vdot, grads, direction)
    return (
      sum(jax.tree.leaves(products)),
      (at(1e-2) - at(-1e-2)) / 2e-2,
      jax.tree.map(lambda x: jnp.abs(x).max(), grads),
    )

  got, want, sizes = jit(both)(lm.initial, direction)
  assert abs(want) > 0.1
  np.testing.assert_allclose(got, want, rtol=5e-3)
  assert min(jax.tree.leaves(sizes)) > 0


@pytest.mark.parametrize(
  'kind', [pytest.param('vq', marks=pytest.mark.nightly), 'rvq']
)
def test_a_deterministic_sequence_is_learned(kind):
  """Each document follows a cycle from the place of its first code."""
  lm = make('discrete', kind)
  num_codes = int(np.prod(lm.sizes))
  rng = np.random.default_rng(0)
  cycle = rng.permutation(num_codes)[:9]
  vectors = np.random.default_rng(7).normal(
    size=(num_codes, tiny_top_lm.D_LEVEL)
  )
  # Three documents of four codes per row; first codes are equally likely.
  begin = np.arange(9).reshape(3, 3)
  codes = cycle[(begin[..., None] + np.arange(4)) % 9].reshape(3, 12)
  sequence = make_sequence().replace(
    codes_BP=jnp.asarray(codes, jnp.int32),
    vectors_BPD=jnp.asarray(vectors[codes], jnp.float32),
    document_BP=jnp.broadcast_to(jnp.arange(12) // 4, (3, 12)),
    is_end_BP=jnp.broadcast_to(jnp.arange(12) % 4 == 3, (3, 12)),
  )
  optimizer = optax.adam(1e-2)

  def step(carry, _):
    variables, state = carry
    loss, grads = jax.value_and_grad(lm.loss)(variables, sequence)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(variables, updates), state), loss

  def train(variables):
    return jax.lax.scan(
      step, (variables, optimizer.init(variables)), None, length=150
    )

  (variables, _), _ = jit(train)(lm.initial)
  output = lm.call(variables, sequence)
  terms = lm.terms(variables, sequence)
  is_told = np.arange(12) % 4 > 0
  nats = np.asarray(losses.code_nats(output, sequence.codes_BP))
  assert nats[:, is_told].mean() < 0.01
  np.testing.assert_allclose(nats[:, ~is_told].mean(), np.log(9), rtol=0.02)
  found = metrics.discrete_metrics(output, sequence, terms)
  assert found['top_lm_end_accuracy'].total == 36
  assert found['top_lm_code_accuracy'].total >= 27 + 1
  assert found['top_lm_code_accuracy_last'].total == 9
  # Generation from the first code follows the cycle to the end.
  state, cache = lm.prefill(
    variables,
    sequence.vectors_BPD[:, :1],
    sequence.document_BP[:, :1],
    lm.model.init_cache(3, SLOTS),
  )
  state = state[:, 0]
  greedy = jit(
    lm.model.apply,
    method=lambda m, x: m.code_head.decode(
      x, lambda _, logits: jnp.argmax(logits, axis=-1)
    ),
  )
  for slot in range(1, 4):
    assert (lm.end_logits(variables, state) < 0).all()
    code = digits_lib.compose(greedy(variables, state), lm.sizes)
    np.testing.assert_array_equal(code, codes[:, slot])
    state, cache = lm.step(
      variables,
      jnp.asarray(vectors, jnp.float32)[code],
      jnp.zeros(3, jnp.int32),
      cache,
      np.ones(3, bool),
    )
  assert (lm.end_logits(variables, state) > 0).all()
