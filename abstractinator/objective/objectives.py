"""What a run trains and what is measured of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from abstractinator.model.pyramid import (
  BytePredictions,
  CodePredictions,
  Pyramid,
  PyramidOutput,
)
from abstractinator.objective import losses, metrics
from abstractinator.objective.metrics import Metrics, pyramid_metrics
from abstractinator.ops.sampling import BITS_PER_NAT, likeliest
from abstractinator.types import Array, Mean, PyTree

Terms = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
  """One of `OBJECTIVES`.

  Attributes:
    method: Of `AbstractinatorPyramid`, from a batch to an output.
    init_method: Of it, from a batch of bytes. Only what it uses has parameters.
    terms: From an output to terms; see `pyramid_losses.terms`.
    measure: From variables, an output, its terms and the model to metrics.
    has_codes: Whether the model has all that encodes and decodes.
    reads_codes: Whether batches are of codes, in the place of bytes.
  """

  method: str
  init_method: str
  terms: Callable[[Any], Terms]
  measure: Callable[[PyTree, Any, Terms, Pyramid], Metrics]
  has_codes: bool
  reads_codes: bool = False


def _measure_pyramid(
  variables: PyTree,
  output: PyramidOutput,
  terms: Terms,
  model: Pyramid,
) -> Metrics:
  nearest = None
  if output.top_lm is not None and output.top_lm.vectors_BPD is not None:
    # Nothing is mutable here: what is predicted moves no codebook.
    nearest = model.apply(
      variables,
      output.top_lm.vectors_BPD,
      output.top_codes.document_BP >= 0,
      output.batches[0].row_B,
      method='nearest_codes',
    )
  stage_sizes = [c.quantizer.stage_sizes for c in model.config.levels]
  return pyramid_metrics(output, terms, stage_sizes, nearest, model.num_ids)


def _entropy_terms(output: BytePredictions) -> Terms:
  return losses.entropy_terms(
    output.nats_BS, output.gaussian_nats_BS, output.batch
  )


def _measure_bytes(
  variables: PyTree,
  output: BytePredictions,
  terms: Terms,
  model: Pyramid,
) -> Metrics:
  """Bits per byte, and how many bytes are predicted right."""
  del variables
  batch = output.batch
  is_byte_BS = (batch.document_BS >= 0) & (batch.ids_BS < model.num_ids)
  is_right_BS = likeliest(output.logits_BSV) == batch.ids_BS
  num_bytes, num_right = (
    jnp.sum(mask_BS, dtype=jnp.float32)
    for mask_BS in (is_byte_BS, is_byte_BS & is_right_BS)
  )
  found = {
    'entropy_model_bits_per_byte': Mean(
      terms['entropy_model'] * BITS_PER_NAT, num_bytes
    ),
    'entropy_model_byte_accuracy': Mean(num_right, num_bytes),
  }
  if output.gaussian_nats_BS is not None:
    found['gaussian_bits_per_dimension'] = Mean(
      terms['gaussian'] * BITS_PER_NAT, losses.num_ids(batch)
    )
  return found


def _code_terms(output: CodePredictions) -> Terms:
  return losses.top_lm_terms(output.top_lm, output.top_codes)


def _measure_codes(
  variables: PyTree,
  output: CodePredictions,
  terms: Terms,
  model: Pyramid,
) -> Metrics:
  """Bits per code, and how many codes are predicted right."""
  del variables, model
  return metrics.discrete_metrics(output.top_lm, output.top_codes, terms)


OBJECTIVES = {
  'all': Objective(
    '__call__',
    '__call__',
    losses.pyramid_terms,
    _measure_pyramid,
    has_codes=True,
  ),
  'entropy_model': Objective(
    'predict_bytes',
    'predict_bytes',
    _entropy_terms,
    _measure_bytes,
    has_codes=False,
  ),
  'top_lm': Objective(
    'predict_codes',
    '__call__',
    _code_terms,
    _measure_codes,
    has_codes=True,
    reads_codes=True,
  ),
}
