"""Objectives of training: how each runs the model and what it measures."""

import dataclasses
from collections.abc import Callable
from typing import Any

from abstractinator.model.pyramid import (
  BytePredictions,
  CodePredictions,
  Pyramid,
  PyramidOutput,
)
from abstractinator.objective import losses, metrics
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.losses import Terms
from abstractinator.objective.metrics import Metrics
from abstractinator.ops.sampling import BITS_PER_NAT, likeliest
from abstractinator.types import Mean, PyTree


@dataclasses.dataclass(frozen=True)
class Objective:
  """One of `OBJECTIVES`.

  The output of `method` is a `PyramidOutput`, `BytePredictions` or
  `CodePredictions`; `terms` and `measure` take the same type.

  Attributes:
    method: Name of the method of `Pyramid` that takes a batch and returns an
      output.
    init_method: Name of the method used to initialise parameters; it takes a
      batch of bytes. Modules it does not call get no parameters.
    terms: Computes the loss terms of an output.
    measure: Computes the metrics of an output, given the variables, the output,
      its terms and the model.
    has_codes: Whether the trained model can encode and decode.
    reads_codes: Whether batches are of codes, in place of bytes.
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
  nearest: Any = None
  if output.top_lm is not None and output.top_lm.vectors_BPD is not None:
    # No collection is mutable here: predicted vectors move no codebook.
    nearest = model.apply(
      variables,
      output.top_lm.vectors_BPD,
      output.top_codes.document_BP >= 0,
      output.batches[0].row_B,
      method='nearest_codes',
    )
  stage_sizes = [c.quantizer.stage_sizes for c in model.config.levels]
  return metrics.pyramid_metrics(
    output, terms, stage_sizes, nearest, model.num_ids
  )


def _entropy_terms(output: BytePredictions) -> Terms:
  terms = losses.entropy_terms(
    output.nats_BS, output.gaussian_nats_BS, output.batch
  )
  return ByLevel((terms,))


def _measure_bytes(
  variables: PyTree,
  output: BytePredictions,
  terms: Terms,
  model: Pyramid,
) -> Metrics:
  """Computes bits per byte, and the fraction of bytes predicted right."""
  del variables
  batch, (of_level,) = output.batch, terms.levels
  is_byte_BS = losses.is_byte(batch, model.num_ids)
  is_right_BS = likeliest(output.logits_BSV) == batch.ids_BS
  num_bytes = metrics.count(is_byte_BS)
  found = {
    'entropy_model_bits_per_byte': Mean(
      of_level['entropy_model'] * BITS_PER_NAT, num_bytes
    ),
    'entropy_model_byte_accuracy': Mean(
      metrics.count(is_byte_BS & is_right_BS), num_bytes
    ),
  }
  if output.gaussian_nats_BS is not None:
    found['gaussian_bits_per_dimension'] = Mean(
      of_level['gaussian'] * BITS_PER_NAT, losses.num_ids(batch)
    )
  return ByLevel((found,))


def _code_terms(output: CodePredictions) -> Terms:
  return ByLevel(whole=losses.top_lm_terms(output.top_lm, output.top_codes))


def _measure_codes(
  variables: PyTree,
  output: CodePredictions,
  terms: Terms,
  model: Pyramid,
) -> Metrics:
  """Computes bits per code, and the fraction of codes predicted right."""
  del variables, model
  found = metrics.discrete_metrics(output.top_lm, output.top_codes, terms.whole)
  return ByLevel(whole=found)


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
