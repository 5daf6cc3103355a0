"""What a top LM takes codes and documents for, and draws from it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.model.top_lm import CodeSequence
from abstractinator.objective import losses
from tests.helpers import tiny_top_lm
from tests.helpers.jitted import jit
from tests.helpers.tiny_top_lm import kinds, make


def all_codes(sizes):
  """Digits of every code, [X, M]."""
  return jnp.array(list(itertools.product(*map(range, sizes))), jnp.int32)


@kinds
def test_probabilities_of_all_codes_add_up_to_one(kind):
  lm = make('discrete', kind)
  states = jax.random.normal(jax.random.key(3), (5, 1, tiny_top_lm.WIDTH))
  digits = all_codes(lm.sizes)
  shape = (5, *digits.shape)
  logits = lm.code_logits(
    lm.variables,
    jnp.broadcast_to(states, (*shape[:2], tiny_top_lm.WIDTH)),
    jnp.broadcast_to(digits, shape),
  )
  log_p = sum(
    jnp.take_along_axis(
      jax.nn.log_softmax(x), jnp.broadcast_to(digits, shape)[..., m, None], -1
    )[..., 0]
    for m, x in enumerate(logits)
  )
  p = np.exp(log_p)
  np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
  is_allowed = ~np.isin(digits[:, 0], tiny_top_lm.FORBIDDEN.get(kind, ()))
  assert (p[:, ~is_allowed] == 0).all()
  assert (p[:, is_allowed] > 0).all()
  # It says something, and not the same of every state.
  assert p.max() > 3 / is_allowed.sum()
  assert np.abs(p[0] - p[1]).max() > 0.05


def test_what_a_digit_says_of_the_next_depends_on_the_state():
  """Log odds of two digits and of two before them do not merely add up."""
  lm = make('discrete', 'rvq')
  states = jax.random.normal(jax.random.key(3), (6, 1, tiny_top_lm.WIDTH))
  states = jnp.broadcast_to(states, (6, 2, tiny_top_lm.WIDTH))
  digits = jnp.broadcast_to(jnp.array([[0, 0, 0], [1, 0, 0]]), (6, 2, 3))
  odds = lm.code_logits(lm.variables, states, digits)[1]
  odds = odds[..., 0] - odds[..., 1]
  assert np.std(odds[:, 0] - odds[:, 1]) > 0.05


def test_probabilities_of_all_documents_add_up_to_one():
  """With their ends: of up to three codes, and of what is longer."""
  lm = make('discrete', 'forbidden')
  vectors = np.random.default_rng(7).normal(size=(16, tiny_top_lm.D_LEVEL))
  allowed = [c for c in range(16) if c % 4 not in (1, 3)]
  total = 0.0
  for length in (1, 2, 3):
    codes = np.array(list(itertools.product(allowed, repeat=length)))
    extra = ((0, 512 - len(codes)), (0, 3 - length))
    document = np.pad(np.zeros_like(codes), extra, constant_values=-1)
    codes = np.pad(codes, extra)
    sequence = CodeSequence(
      codes_BP=jnp.asarray(codes, jnp.int32),
      vectors_BPD=jnp.asarray(vectors[codes], jnp.float32),
      document_BP=jnp.asarray(document, jnp.int32),
      is_end_BP=jnp.broadcast_to(jnp.arange(3) == length - 1, codes.shape),
    )
    output = lm.call(lm.variables, sequence)

    def p(is_end, output=output, codes=codes, is_real=document >= 0):
      nats = losses.code_nats(output, codes)
      nats += losses.end_nats(output, is_end)
      nats = np.where(is_real, nats, 0).sum(1)
      return np.exp(-nats[is_real[:, 0]]).sum()

    total += p(sequence.is_end_BP)
  longer = p(jnp.zeros((512, 3), bool))
  assert longer > 0.01
  assert total > 0.1
  np.testing.assert_allclose(total + longer, 1, rtol=1e-5)


def test_sampled_codes_follow_their_distribution():
  """The joint frequencies of codes of equal stages are those of the model."""
  lm, draws = make('discrete', 'forbidden'), 40000
  state = jax.random.normal(jax.random.key(1), (tiny_top_lm.WIDTH,))
  digits = all_codes(lm.sizes)
  logits = lm.code_logits(
    lm.variables, jnp.broadcast_to(state, (16, tiny_top_lm.WIDTH)), digits
  )
  p = np.ones(16)
  for m, x in enumerate(logits):
    p *= np.asarray(jax.nn.softmax(x))[np.arange(16), np.asarray(digits[:, m])]
  codes = jit(lm.model.apply, method='next_code')(
    lm.variables,
    jax.random.key(4),
    jnp.broadcast_to(state, (draws, tiny_top_lm.WIDTH)),
  )
  order = np.asarray(digits[:, 0] + 4 * digits[:, 1])
  found = np.bincount(codes, minlength=16)[order] / draws
  np.testing.assert_allclose(found, p, atol=0.015)
  assert (found[p == 0] == 0).all()


def test_filters_act_on_every_stage():
  lm = make('discrete', 'rvq')
  states = jax.random.normal(jax.random.key(2), (200, tiny_top_lm.WIDTH))

  def draw(seed, **filters):
    apply = jit(lm.model.apply, method='next_code', **filters)
    return np.asarray(apply(lm.variables, jax.random.key(seed), states))

  greedy = draw(0, temperature=0.0)
  np.testing.assert_array_equal(draw(1, temperature=0.0), greedy)
  np.testing.assert_array_equal(draw(1, top_k=1), greedy)
  np.testing.assert_array_equal(draw(1, top_p=1e-6), greedy)
  np.testing.assert_array_equal(draw(1, min_p=1.0), greedy)
  assert (draw(1) != greedy).mean() > 0.3
  # Digit by digit the best one, given those before it.
  digits = jnp.stack([greedy % 4, greedy // 4 % 3, greedy // 12], axis=-1)
  for m, logits in enumerate(lm.code_logits(lm.variables, states, digits)):
    np.testing.assert_array_equal(logits.argmax(-1), digits[:, m])
