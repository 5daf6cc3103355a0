"""Probabilities that a top LM gives to codes and documents, and its draws."""

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
  """Returns the digits of every code, [X, M]."""
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
  # The distribution is not uniform, and depends on the state.
  assert p.max() > 3 / is_allowed.sum()
  assert np.abs(p[0] - p[1]).max() > 0.05


def test_the_effect_of_a_digit_on_the_next_depends_on_the_state():
  """The effect of a digit on the log odds of the next is not a constant."""
  lm = make('discrete', 'rvq')
  states = jax.random.normal(jax.random.key(3), (6, 1, tiny_top_lm.WIDTH))
  states = jnp.broadcast_to(states, (6, 2, tiny_top_lm.WIDTH))
  digits = jnp.broadcast_to(jnp.array([[0, 0, 0], [1, 0, 0]]), (6, 2, 3))
  odds = lm.code_logits(lm.variables, states, digits)[1]
  odds = odds[..., 0] - odds[..., 1]
  assert np.std(odds[:, 0] - odds[:, 1]) > 0.05


def test_probabilities_of_all_documents_add_up_to_one():
  """Documents of up to three codes with their ends, and all longer ones."""
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


def decode(lm, choose, *args):
  """Returns the digits that `choose` picks by stage, logits and `args`."""

  def run(module, states, *args):
    return module.code_head.decode(
      states, lambda stage, logits: choose(stage, logits, *args)
    )

  return np.asarray(jit(lm.model.apply, method=run)(lm.variables, *args))


def test_drawn_codes_follow_their_distribution():
  """Joint frequencies of the digits are those of the model."""
  lm, draws = make('discrete', 'forbidden'), 40000
  state = jax.random.normal(jax.random.key(1), (tiny_top_lm.WIDTH,))
  digits = all_codes(lm.sizes)
  logits = lm.code_logits(
    lm.variables, jnp.broadcast_to(state, (16, tiny_top_lm.WIDTH)), digits
  )
  p = np.ones(16)
  for m, x in enumerate(logits):
    p *= np.asarray(jax.nn.softmax(x))[np.arange(16), np.asarray(digits[:, m])]

  def draw(stage, logits, key):
    return jax.random.categorical(jax.random.fold_in(key, stage), logits)

  states = jnp.broadcast_to(state, (draws, tiny_top_lm.WIDTH))
  drawn = decode(lm, draw, states, jax.random.key(4))
  order = np.asarray(digits[:, 0] + 4 * digits[:, 1])
  codes = drawn[:, 0] + 4 * drawn[:, 1]
  found = np.bincount(codes, minlength=16)[order] / draws
  np.testing.assert_allclose(found, p, atol=0.015)
  assert (found[p == 0] == 0).all()


def test_a_greedy_code_has_the_best_digits_given_those_before():
  lm = make('discrete', 'rvq')
  states = jax.random.normal(jax.random.key(2), (200, tiny_top_lm.WIDTH))
  greedy = decode(lm, lambda _, logits: jnp.argmax(logits, axis=-1), states)
  for m, logits in enumerate(lm.code_logits(lm.variables, states, greedy)):
    np.testing.assert_array_equal(logits.argmax(-1), greedy[:, m])
  assert len(np.unique(greedy, axis=0)) > 10
