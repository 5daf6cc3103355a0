"""Loss terms of levels, of a pyramid and of its top LM, and their weighting."""

import jax
import jax.numpy as jnp
from jax import lax
from optax.losses import (
  sigmoid_binary_cross_entropy,
  softmax_cross_entropy_with_integer_labels,
  squared_error,
)

from abstractinator.config import LossConfig
from abstractinator.model.level import LevelOutput
from abstractinator.model.pyramid import PyramidOutput
from abstractinator.model.top_lm import CodeSequence, CodeSequenceOutput
from abstractinator.objective.by_level import ByLevel
from abstractinator.ops import digits as digits_lib
from abstractinator.types import NUM_BYTES, Array, Batch

Terms = ByLevel[Array]

# Terms that the objective averages over levels; all others are summed.
_AVERAGED = ('expander', 'end')


def num_ids(batch: Batch) -> Array:
  """Returns the number of real ids of a batch, [] float32."""
  return jnp.sum(batch.document_BS >= 0, dtype=jnp.float32)


def is_byte(batch: Batch, vocab_size: int = NUM_BYTES) -> Array:
  """Returns which ids of the first level are bytes, not specials, [B, S] bool.

  Args:
    batch: Rows of the first level.
    vocab_size: Number of ordinary ids of the first level. If they are not
      bytes, metrics named after bytes count them.
  """
  return (batch.document_BS >= 0) & (batch.ids_BS < vocab_size)


def level_terms(
  output: LevelOutput,
  batch: Batch,
  code_logits: tuple[Array, ...] | None = None,
) -> dict[str, Array]:
  """Computes the unweighted terms of a level, sums over its ids or segments.

  Args:
    output: Output of the level.
    batch: Ids that the level was given.
    code_logits: Predictions of the digits of the codes, M arrays [B, U, K]
      float32; None if nothing predicts them.

  Returns:
    [] float32 each, named as their weights in `LossConfig`.
    entropy_model: Cross-entropy of the ids under the entropy model, nats.
    gaussian: Negative log density of the entropy model's Gaussian head, nats
      per dimension; 0 without one.
    expander: Cross-entropy of the ids under the expander, nats.
    end: Binary cross-entropy of the ends of segments where they are uncertain,
      nats; 0 where the entropy model decides them.
    commitment: Squared distance of segments to their codes, whose gradient
      moves the segments.
    codebook: Equal to `commitment`; its gradient moves a learned codebook.
    rate: See `rate_term`; only with a prediction of the codes and a soft
      assignment to them.
  """
  is_valid_BS = batch.document_BS >= 0
  compressed, expanded = output.compressed, output.expanded
  quantized = compressed.quantized
  terms = entropy_terms(
    compressed.entropy_nats_BS, compressed.gaussian_nats_BS, batch
  )
  terms['expander'] = jnp.sum(expanded.nats_BS, where=is_valid_BS)
  terms['end'] = jnp.zeros(())
  if expanded.end_logits_BS is not None:
    end_BS = sigmoid_binary_cross_entropy(
      expanded.end_logits_BS, compressed.segments.is_end_BS
    )
    is_asked_BS = is_valid_BS & ~expanded.end_is_certain_BS
    terms['end'] = jnp.sum(end_BS, where=is_asked_BS)
  for name, distance_BP in (
    ('commitment', quantized.distance_BP),
    ('codebook', quantized.codebook_distance_BP),
  ):
    terms[name] = jnp.sum(distance_BP, where=compressed.is_code_BU)
  if compressed.soft_digits is not None and code_logits is not None:
    terms['rate'] = rate_term(
      compressed.soft_digits, code_logits, compressed.is_code_BU
    )
  return terms


def rate_term(
  soft_digits: tuple[Array, ...],
  code_logits: tuple[Array, ...],
  is_code_BU: Array,
) -> Array:
  """Computes what codes cost under their soft assignment, less its spread.

  For the digit of each stage, with q(k) the probability that a segment is
  assigned to k and p(k) the prediction of k, which gets no gradient:

    sum over segments of sum over k of q(k) (-log p(k))
      - number of segments * entropy of the mean of q over segments

  The first part moves segments towards codes that are expected; the second
  keeps all codes in use.

  Args:
    soft_digits: Probabilities q, M arrays [B, U, K] float32.
    code_logits: Logits of p, M arrays [B, U, K] float32; values after the K of
      q, of special ids, are left out.
    is_code_BU: True for slots that hold a segment, [B, U] bool.

  Returns:
    [] float32, nats.

  Source: after the soft rate of RDVQ, arXiv:2604.10546.
  """
  total, count = jnp.zeros(()), jnp.sum(is_code_BU, dtype=jnp.float32)
  mask_BU1 = is_code_BU[..., None]
  for q_BUK, logits in zip(soft_digits, code_logits, strict=True):
    log_p_BUK = jax.nn.log_softmax(lax.stop_gradient(logits))
    log_p_BUK = log_p_BUK[..., : q_BUK.shape[-1]]
    # Forbidden digits have no probability, and no cost.
    cost_BUK = jnp.where(q_BUK > 0, -q_BUK * log_p_BUK, 0.0)
    total += jnp.sum(cost_BUK, where=mask_BU1)
    mean_K = jnp.sum(q_BUK, (0, 1), where=mask_BU1) / jnp.maximum(count, 1.0)
    total -= count * jnp.sum(jax.scipy.special.entr(mean_K))
  return total


def entropy_terms(
  nats_BS: Array, gaussian_nats_BS: Array | None, batch: Batch
) -> dict[str, Array]:
  """Computes the terms of an entropy model; see `level_terms`.

  Args:
    nats_BS: Cross-entropy of each id, [B, S] float32, nats.
    gaussian_nats_BS: Negative log density under the Gaussian head, [B, S]
      float32, nats per dimension; None without one.
    batch: Ids that the entropy model was given.

  Returns:
    `entropy_model` and `gaussian`, [] float32 each.
  """
  is_valid_BS = batch.document_BS >= 0
  return {
    'entropy_model': jnp.sum(nats_BS, where=is_valid_BS),
    'gaussian': jnp.zeros(())
    if gaussian_nats_BS is None
    else jnp.sum(gaussian_nats_BS, where=is_valid_BS),
  }


def top_lm_terms(
  output: CodeSequenceOutput, sequence: CodeSequence
) -> dict[str, Array]:
  """Computes the unweighted terms of a top LM, sums over the codes.

  Args:
    output: Output of the top LM.
    sequence: Codes that the top LM was given and predicts; they get no
      gradient.

  Returns:
    [] float32 each, named as their weights in `LossConfig`.
    top_lm_code: Cross-entropy of the codes, nats; 0 if it is continuous.
    top_lm_vector: Squared distance of predicted vectors to those of the codes,
      mean over D; 0 if it is discrete.
    top_lm_end: Binary cross-entropy of the ends of documents, nats.
  """
  is_valid_BP = sequence.document_BP >= 0
  code = vector = jnp.zeros(())
  if output.logits is not None:
    nats_BP = code_nats(output, sequence.codes_BP)
    code = jnp.sum(nats_BP, where=is_valid_BP)
  if output.vectors_BPD is not None:
    target_BPD = lax.stop_gradient(sequence.vectors_BPD).astype(jnp.float32)
    error_BPD = squared_error(output.vectors_BPD, target_BPD)
    vector = jnp.sum(jnp.mean(error_BPD, axis=-1), where=is_valid_BP)
  end_BP = end_nats(output, sequence.is_end_BP)
  return {
    'top_lm_code': code,
    'top_lm_vector': vector,
    'top_lm_end': jnp.sum(end_BP, where=is_valid_BP),
  }


def pyramid_terms(output: PyramidOutput) -> Terms:
  """Computes the unweighted terms of all levels and of the top LM.

  Args:
    output: Output of the pyramid.

  Returns:
    `level_terms` of each level; `top_lm_terms` if there is a top LM; and
    `top_lm_expander` if it expands: cross-entropy of the ids of the top level
    given the predicted codes, nats, [] float32.
  """
  predicted = [level.expanded.logits for level in output.levels[1:]]
  top_logits = output.top_lm.logits if output.top_lm is not None else None
  levels = tuple(
    map(level_terms, output.levels, output.batches, [*predicted, top_logits])
  )
  whole: dict[str, Array] = {}
  if output.top_lm is not None:
    whole = top_lm_terms(output.top_lm, output.top_codes)
  if output.top_lm_expanded is not None:
    is_valid_BS = output.batches[-1].document_BS >= 0
    whole['top_lm_expander'] = jnp.sum(
      output.top_lm_expanded.nats_BS, where=is_valid_BS
    )
  return ByLevel(levels, whole)


def objective(terms: Terms, weights: LossConfig, num_ids: Array) -> Array:
  """Computes the objective: the weighted sum of the terms per id.

  Terms of all levels are per id of the first level in the end, so that what
  levels cost adds up. The terms that predict ids back, `expander` and `end`,
  are averaged over levels; the others are summed.

  Args:
    terms: Unweighted terms; a level that does not learn has none.
    weights: Weight of each term, by its name.
    num_ids: Number of ids of the first level, [] float32.

  Returns:
    The objective, [] float32, nats per id.
  """
  objective = jnp.zeros(())
  for of_level in (*terms.levels, terms.whole):
    for name, total in of_level.items():
      weight = getattr(weights, name)
      if name in _AVERAGED:
        weight /= len(terms.levels)
      objective += weight * total
  return objective / jnp.maximum(num_ids, 1.0)


def code_nats(output: CodeSequenceOutput, codes_BP: Array) -> Array:
  """Computes -log p of each code given those before it.

  Args:
    output: Output of a discrete top LM.
    codes_BP: Codes that the top LM was given, [B, P] int32.

  Returns:
    [B, P] float32, nats, summed over the digits of a code; meaningless in empty
    slots.
  """
  nats_BP = jnp.zeros(codes_BP.shape)
  for logits_BPK, digit_BP in scored_digits(output, codes_BP):
    nats_BP += softmax_cross_entropy_with_integer_labels(logits_BPK, digit_BP)
  return nats_BP


def scored_digits(
  output: CodeSequenceOutput, codes_BP: Array
) -> list[tuple[Array, Array]]:
  """Returns the digits of codes beside the logits that predict them.

  Args:
    output: Output of a discrete top LM.
    codes_BP: Codes that the top LM was given, [B, P] int32.

  Returns:
    For each stage the logits of its digit, [B, P, K] float32, and the digit,
    [B, P] int32.
  """
  assert output.logits is not None, 'a continuous top LM predicts no digits'
  sizes = tuple(logits_BPK.shape[-1] for logits_BPK in output.logits)
  digits_BPM = digits_lib.decompose(codes_BP, sizes)
  return [
    (logits_BPK, digits_BPM[..., stage])
    for stage, logits_BPK in enumerate(output.logits)
  ]


def end_nats(output: CodeSequenceOutput, is_end_BP: Array) -> Array:
  """Computes -log p of whether a document ends after each code.

  Args:
    output: Output of a top LM.
    is_end_BP: Whether a document ends after the code, [B, P] bool.

  Returns:
    [B, P] float32, nats.
  """
  return sigmoid_binary_cross_entropy(output.end_logits_BP, is_end_BP)
