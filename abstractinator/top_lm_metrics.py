"""What is measured of a top LM: sums and counts, as in `metrics`."""

import jax.numpy as jnp

from abstractinator.metrics import Metrics
from abstractinator.modules.code_sequence_transformer import (
  CodeSequence,
  CodeSequenceOutput,
)
from abstractinator.modules.quantizer import QuantizerOutput
from abstractinator.ops import digits as digits_lib
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Mean


def discrete_metrics(
  output: CodeSequenceOutput,
  sequence: CodeSequence,
  terms: dict[str, Array],
) -> Metrics:
  """Metrics of a discrete top LM.

  Args:
    output: Of the top LM.
    sequence: What it was given.
    terms: From `top_lm_losses.terms`.

  Returns:
    Means over codes by name. A code counts as right if the most likely digit
    of every stage is, which is when choosing them one by one finds it. The
    margin is the lead of the true digit of stage 0 over the best other one,
    nats. Names ending in `_last` are over the last codes of documents, or of
    what a row has of them.
  """
  sizes = tuple(logits.shape[-1] for logits in output.logits)
  digits_BPM = digits_lib.decompose(sequence.codes_BP, sizes)
  is_right_BP = jnp.all(
    jnp.stack(
      [
        jnp.argmax(logits_BPK, axis=-1) == digits_BPM[..., stage]
        for stage, logits_BPK in enumerate(output.logits)
      ]
    ),
    axis=0,
  )
  scores_BPK, digit_BP = output.logits[0], digits_BPM[..., 0]
  is_true_BPK = jnp.arange(sizes[0]) == digit_BP[..., None]
  other_BP = jnp.max(jnp.where(is_true_BPK, -jnp.inf, scores_BPK), axis=-1)
  margin_BP = _chosen(scores_BPK, digit_BP) - other_BP
  is_valid_BP = sequence.document_BP >= 0
  return {
    'top_lm_code_bits_per_code': Mean(
      terms['top_lm_code'] * BITS_PER_NAT, _count(is_valid_BP)
    ),
    **_accuracies(is_right_BP, sequence),
    **_top_accuracies(scores_BPK, digit_BP, sequence),
    # Where there is another digit at all.
    'top_lm_margin_nats': _mean(margin_BP, is_valid_BP & (other_BP > -jnp.inf)),
    **_ends(output, sequence, terms),
  }


def continuous_metrics(
  output: CodeSequenceOutput,
  sequence: CodeSequence,
  terms: dict[str, Array],
  quantized: QuantizerOutput,
  scores_BPK: Array | None,
) -> Metrics:
  """Metrics of a continuous top LM.

  Args:
    output: Of the top LM.
    sequence: What it was given.
    terms: From `top_lm_losses.terms`.
    quantized: What a `read_only` quantizer makes of the predicted vectors.
    scores_BPK: [B, P, K] float32, higher for what is nearer, of the entries of
      stage 0; None for a quantizer without a codebook.

  Returns:
    Means over codes by name. The centers are the vectors of codes: which one is
    nearest (the whole code, and its digit of stage 0), how far the true one
    is, mean over D, and how much farther than the nearest, summed over D. As
    in `discrete_metrics`, `_last` is over the last codes of documents; what
    needs scores is there if they are.
  """
  is_valid_BP = sequence.document_BP >= 0
  true_BPD = sequence.vectors_BPD.astype(jnp.float32)
  nearest_BPD = quantized.vectors_BPD.astype(jnp.float32)

  def distance(center_BPD):
    return jnp.sum(jnp.square(output.vectors_BPD - center_BPD), axis=-1)

  margin_BP = distance(true_BPD) - distance(nearest_BPD)
  found = {}
  if scores_BPK is not None:
    digit_BP = sequence.codes_BP % scores_BPK.shape[-1]
    found = _top_accuracies(scores_BPK, digit_BP, sequence) | {
      'top_lm_center_agreement_stage0': _mean(
        quantized.digits_BPM[..., 0] == digit_BP, is_valid_BP
      )
    }
  return found | {
    'top_lm_mse_to_target_center': Mean(
      terms['top_lm_vector'], _count(is_valid_BP)
    ),
    'top_lm_margin': _mean(margin_BP, is_valid_BP),
    **_accuracies(quantized.codes_BP == sequence.codes_BP, sequence),
    **_ends(output, sequence, terms),
  }


def _accuracies(is_right_BP, sequence) -> Metrics:
  return {
    'top_lm_code_accuracy': _mean(is_right_BP, sequence.document_BP >= 0),
    'top_lm_code_accuracy_last': _mean(is_right_BP, _is_last(sequence)),
  }


def _top_accuracies(scores_BPK, digit_BP, sequence) -> Metrics:
  """How often the true digit is among the best; the lower of equals first."""
  true_BP1 = _chosen(scores_BPK, digit_BP)[..., None]
  is_lower_BPK = jnp.arange(scores_BPK.shape[-1]) < digit_BP[..., None]
  is_before_BPK = scores_BPK > true_BP1
  is_before_BPK |= (scores_BPK == true_BP1) & is_lower_BPK
  rank_BP = jnp.sum(is_before_BPK, axis=-1)
  return {
    f'top_lm_top{k}_accuracy_stage0{name}': _mean(rank_BP < k, is_counted_BP)
    for k in (5, 10)
    for name, is_counted_BP in (
      ('', sequence.document_BP >= 0),
      ('_last', _is_last(sequence)),
    )
  }


def _ends(output, sequence, terms) -> Metrics:
  is_valid_BP = sequence.document_BP >= 0
  is_right_BP = (output.end_logits_BP > 0) == sequence.is_end_BP
  return {
    'top_lm_end_bits_per_code': Mean(
      terms['top_lm_end'] * BITS_PER_NAT, _count(is_valid_BP)
    ),
    'top_lm_end_accuracy': _mean(is_right_BP, is_valid_BP),
  }


def _is_last(sequence):
  """Last slot of each document in its row, [B, P] bool."""
  document_BP = sequence.document_BP
  following_BP = jnp.pad(document_BP, ((0, 0), (0, 1)), constant_values=-1)[
    :, 1:
  ]
  return (document_BP >= 0) & (document_BP != following_BP)


def _chosen(scores_BPK, digit_BP):
  return jnp.take_along_axis(scores_BPK, digit_BP[..., None], axis=-1)[..., 0]


def _count(mask):
  return jnp.sum(mask, dtype=jnp.float32)


def _mean(x, mask):
  return Mean(jnp.sum(jnp.where(mask, x, 0.0)), _count(mask))
