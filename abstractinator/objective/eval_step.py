"""Metrics of one batch, without training on it."""

import jax.numpy as jnp

from abstractinator.config import LossConfig
from abstractinator.model.pyramid import Pyramid
from abstractinator.objective import losses
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.learning import Learning
from abstractinator.objective.metrics import Metrics
from abstractinator.objective.objectives import Objective
from abstractinator.types import Batch, Mean, PyTree


def eval_step(
  variables: PyTree,
  batch: Batch,
  *,
  model: Pyramid,
  weights: LossConfig,
  objective: Objective,
) -> Metrics:
  """Computes the metrics of a batch; changes nothing.

  Args:
    variables: Parameters and collections of the model.
    batch: Rows; rows of padding count for nothing.
    model: The model that is evaluated.
    weights: Weights of the loss terms.
    objective: The objective of the run.

  Returns:
    Metrics of the objective, and `loss_total`, nats per id of the first level.
  """
  output = model.apply(variables, batch, method=objective.method)
  terms = objective.terms(output)
  learned = Learning(model.config, weights).learned(terms)
  total = losses.objective(learned, weights, jnp.ones(()))
  loss = Mean(total, losses.num_ids(batch))
  metrics = objective.measure(variables, output, terms, model)
  return metrics | ByLevel(whole={'loss_total': loss})
