"""The terms of the objective that a top LM adds, and what codes cost."""

import jax.numpy as jnp
from jax import lax

from abstractinator import losses
from abstractinator.modules.code_sequence_transformer import (
  CodeSequence,
  CodeSequenceOutput,
)
from abstractinator.ops import digits as digits_lib
from abstractinator.ops.cross_entropy import cross_entropy
from abstractinator.types import Array


def code_nats(output: CodeSequenceOutput, codes_BP: Array) -> Array:
  """-log p of each code given those before it, summed over its digits.

  Args:
    output: Of a discrete top LM.
    codes_BP: [B, P] int32, the codes it was given.

  Returns:
    [B, P] float32, nats; meaningless in empty slots.
  """
  sizes = tuple(logits.shape[-1] for logits in output.logits)
  digits_BPM = digits_lib.decompose(codes_BP, sizes)
  return sum(
    cross_entropy(logits_BPK, digits_BPM[..., stage])
    for stage, logits_BPK in enumerate(output.logits)
  )


def end_nats(output: CodeSequenceOutput, is_end_BP: Array) -> Array:
  """-log p of whether documents end after each code, [B, P] float32, nats."""
  return losses.sigmoid_cross_entropy(output.end_logits_BP, is_end_BP)


def terms(
  output: CodeSequenceOutput, sequence: CodeSequence
) -> dict[str, Array]:
  """Unweighted terms, sums over the codes that are there.

  Args:
    output: Of the top LM.
    sequence: What it was given, and shall predict; gets no gradient.

  Returns:
    [] float32 each: cross-entropy of the codes, nats, 0 if continuous; squared
    distance of predicted vectors to those of the codes, mean over D, 0 if
    discrete; binary cross-entropy of the ends of documents, nats.
  """
  zero = jnp.zeros(())
  is_valid_BP = sequence.document_BP >= 0

  def total(x_BP):
    return jnp.sum(jnp.where(is_valid_BP, x_BP, 0.0))

  return {
    'top_lm_code': zero
    if output.logits is None
    else total(code_nats(output, sequence.codes_BP)),
    'top_lm_vector': zero
    if output.vectors_BPD is None
    else total(_mean_square_error(output, sequence)),
    'top_lm_end': total(end_nats(output, sequence.is_end_BP)),
  }


def _mean_square_error(output, sequence):
  target_BPD = lax.stop_gradient(sequence.vectors_BPD).astype(jnp.float32)
  return jnp.mean(jnp.square(output.vectors_BPD - target_BPD), axis=-1)
