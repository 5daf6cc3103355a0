"""Losses and metrics of a top LM, against values computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.quantizers import QuantizerOutput
from abstractinator.model.top_lm import CodeSequence, CodeSequenceOutput
from abstractinator.objective import losses, metrics

# Stage 0 has 6 digits and stage 1 has 2. Documents have 3 codes and 1 code; one
# of 2 codes is cut off by the row. Two slots are empty.
DOCUMENT = jnp.array([[0, 0, 0, 1], [0, 0, -1, -1]])
IS_END = jnp.array([[False, False, True, True], [False] * 4])
DIGIT0 = np.array([[2, 0, 5, 1], [3, 3, 0, 0]])
DIGIT1 = np.array([[1, 0, 0, 1], [1, 0, 0, 0]])
CODES = jnp.asarray(DIGIT0 + 6 * DIGIT1, jnp.int32)


def sequence(vectors=None):
  if vectors is None:
    vectors = jnp.zeros((2, 4, 3))
  return CodeSequence(CODES, vectors, DOCUMENT, IS_END)


def one_hot(digits, size, scale):
  return jnp.asarray(scale * np.eye(size)[digits], jnp.float32)


def discrete(logits0, logits1, ends):
  output = CodeSequenceOutput(
    (jnp.asarray(logits0), jnp.asarray(logits1)),
    None,
    jnp.asarray(ends),
    jnp.zeros(()),
  )
  terms = losses.top_lm_terms(output, sequence())
  return terms, metrics.summarize_level(
    metrics.discrete_metrics(output, sequence(), terms)
  )


def test_a_uniform_guess():
  """The lowest of several digits with equal scores counts as the best."""
  zeros = np.zeros((2, 4), np.float32)
  terms, found = discrete(
    np.zeros((2, 4, 6), np.float32), np.zeros((2, 4, 2), np.float32), zeros
  )
  np.testing.assert_allclose(terms['top_lm_code'], 6 * np.log(12), rtol=1e-6)
  np.testing.assert_allclose(terms['top_lm_end'], 6 * np.log(2), rtol=1e-6)
  assert terms['top_lm_vector'] == 0
  assert found == pytest.approx(
    {
      'top_lm_code_bits_per_code': np.log2(12),
      'top_lm_end_bits_per_code': 1,
      'top_lm_code_accuracy': 1 / 6,
      'top_lm_code_accuracy_last': 0,
      'top_lm_top5_accuracy_stage0': 5 / 6,
      'top_lm_top5_accuracy_stage0_last': 2 / 3,
      'top_lm_top10_accuracy_stage0': 1,
      'top_lm_top10_accuracy_stage0_last': 1,
      'top_lm_margin_nats': 0,
      'top_lm_end_accuracy': 4 / 6,
    },
    rel=1e-6,
  )


def test_what_is_right_of_a_sure_guess():
  logits0, logits1 = one_hot(DIGIT0, 6, 9.0), one_hot(DIGIT1, 2, 9.0)
  # One code is wrong in its last digit, another in its first one.
  logits1 = logits1.at[0, 2].set(-logits1[0, 2])
  logits0 = logits0.at[1, 0].set(-logits0[1, 0])
  ends = jnp.where(IS_END, 3.0, -3.0).at[0, 3].set(-1.0)
  # Empty slots do not count.
  logits0, ends = logits0.at[1, 2:].set(jnp.nan), ends.at[1, 2:].set(jnp.nan)
  terms, found = discrete(logits0, logits1, ends)
  right = np.log1p(np.exp(-9.0))
  code_nats = (
    5 * np.log1p(5 * np.exp(-9.0))
    + np.log(1 + 5 * np.exp(9.0))
    + 5 * right
    + np.log1p(np.exp(9.0))
  )
  np.testing.assert_allclose(terms['top_lm_code'], code_nats, rtol=1e-5)
  end_nats = 5 * np.log1p(np.exp(-3)) + np.log1p(np.exp(1))
  np.testing.assert_allclose(terms['top_lm_end'], end_nats, rtol=1e-5)
  assert found['top_lm_code_accuracy'] == pytest.approx(4 / 6)
  assert found['top_lm_code_accuracy_last'] == pytest.approx(2 / 3)
  assert found['top_lm_margin_nats'] == pytest.approx((5 * 9 - 9) / 6)
  assert found['top_lm_end_accuracy'] == pytest.approx(5 / 6)
  assert found['top_lm_top5_accuracy_stage0'] == pytest.approx(5 / 6)
  bits = code_nats / np.log(2) / 6
  assert found['top_lm_code_bits_per_code'] == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize(('rank', 'top5', 'top10'), [(4, 1, 1), (5, 0, 1)])
def test_ranks_of_the_true_digit(rank, top5, top10):
  scores = np.array(
    [[np.roll(np.arange(6.0), 1 + d + rank) for d in DIGIT0[0]]]
  )
  scores = np.repeat(scores, 2, axis=0)
  scores[1] = [np.roll(np.arange(6.0), 1 + d + rank) for d in DIGIT0[1]]
  # The true digit has the score 5 - rank, so `rank` digits are better.
  true = np.take_along_axis(scores, DIGIT0[..., None], -1)
  assert (true == 5 - rank).all()
  _, found = discrete(
    np.float32(scores), np.zeros((2, 4, 2), np.float32), np.zeros((2, 4))
  )
  for name in ('', '_last'):
    assert found[f'top_lm_top5_accuracy_stage0{name}'] == top5
    assert found[f'top_lm_top10_accuracy_stage0{name}'] == top10


def test_the_only_digit_there_is_has_no_margin():
  output = CodeSequenceOutput(
    (jnp.zeros((2, 4, 1)),), None, jnp.zeros((2, 4)), jnp.zeros(())
  )
  alone = sequence().replace(codes_BP=jnp.zeros_like(CODES))
  terms = losses.top_lm_terms(output, alone)
  found = metrics.summarize_level(
    metrics.discrete_metrics(output, alone, terms)
  )
  assert found['top_lm_margin_nats'] == 0
  assert found['top_lm_code_accuracy'] == 1


@pytest.mark.parametrize('has_scores', [True, False])
def test_a_continuous_guess(has_scores):
  """Predictions are 2 from the true vectors and 1 from the nearest ones."""
  true = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)))
  output = CodeSequenceOutput(
    None, true + 2.0, jnp.zeros((2, 4)), jnp.zeros(())
  )
  output = output.replace(vectors_BPD=output.vectors_BPD.at[1, 2:].set(jnp.nan))
  # One code is right, another one in its digit of stage 0 alone.
  digits = np.stack([(DIGIT0 + 1) % 6, DIGIT1], axis=-1)
  digits[0, 1] = DIGIT0[0, 1], DIGIT1[0, 1]
  digits[1, 1] = DIGIT0[1, 1], 1 - DIGIT1[1, 1]
  nothing = jnp.zeros((2, 4))
  quantized = QuantizerOutput(
    codes_BP=jnp.asarray(digits[..., 0] + 6 * digits[..., 1]),
    digits_BPM=jnp.asarray(digits),
    vectors_BPD=true + 1.0,
    distance_BP=nothing,
    codebook_distance_BP=nothing,
  )
  terms = losses.top_lm_terms(output, sequence(true))
  np.testing.assert_allclose(terms['top_lm_vector'], 6 * 4, rtol=1e-5)
  assert terms['top_lm_code'] == 0
  scores = one_hot(digits[..., 0], 6, 1.0) if has_scores else None
  found = metrics.summarize_level(
    metrics.continuous_metrics(output, sequence(true), terms, quantized, scores)
  )
  want = {
    'top_lm_mse_to_target_center': 4,
    # 4 - 1 in each of three dimensions.
    'top_lm_margin': 9,
    'top_lm_code_accuracy': 1 / 6,
    'top_lm_code_accuracy_last': 0,
    'top_lm_end_bits_per_code': 1,
    'top_lm_end_accuracy': 4 / 6,
  }
  if has_scores:
    # The best digit is one above the true one; all others have equal scores,
    # the lower ones first. Only a true digit of 5 is in the last place.
    want |= {
      'top_lm_center_agreement_stage0': 2 / 6,
      'top_lm_top5_accuracy_stage0': 5 / 6,
      'top_lm_top5_accuracy_stage0_last': 2 / 3,
      'top_lm_top10_accuracy_stage0': 1,
      'top_lm_top10_accuracy_stage0_last': 1,
    }
  assert found == pytest.approx(want, rel=1e-5)
