"""One step of training and one of evaluation, pure functions of arrays."""

import jax
import jax.numpy as jnp
import optax

from abstractinator import losses, pyramid_losses
from abstractinator.config import LossConfig
from abstractinator.metrics import Metrics
from abstractinator.modules.abstractinator import advance
from abstractinator.modules.pyramid import (
  AbstractinatorPyramid,
  PyramidOutput,
)
from abstractinator.pyramid_metrics import pyramid_metrics
from abstractinator.training.state import TrainState
from abstractinator.types import Array, Batch, Mean, PyTree


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
  optimizer: optax.GradientTransformation,
  weights: LossConfig,
  seed: int,
) -> tuple[TrainState, Metrics]:
  """Moves the parameters once, and the codebook and threshold with them.

  Args:
    state: Of the step before.
    batch: Rows of all devices.
    model: All levels.
    optimizer: What turns gradients into updates.
    weights: Of the loss terms.
    seed: Of the run. What is random in a step follows from it, the number of
      the step and the rows.

  Returns:
    The next state, and the metrics of the batch before the update: those of
    `pyramid_metrics`, `loss_total` and `loss_*` (nats per byte-level id,
    unweighted; after the prefix of a level, if there are several),
    `gradient_norm` before clipping.
  """
  num_ids = losses.num_ids(batch)
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def loss_fn(params):
    output, collections = model.apply(
      {'params': params, **state.collections},
      batch,
      mutable=list(state.collections),
      rngs={'byte_dropout': key},
    )
    terms = pyramid_losses.terms(output)
    loss = losses.objective(terms, weights, num_ids)
    return loss, (output, collections, terms)

  (loss, (output, collections, terms)), grads = jax.value_and_grad(
    loss_fn, has_aux=True
  )(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  variables = {'params': state.params, **state.collections}
  metrics = _measure(variables, output, terms, model)
  metrics['loss_total'] = Mean(loss * num_ids, num_ids)
  for name, total in terms.items():
    prefix, slash, term = name.rpartition('/')
    metrics[f'{prefix}{slash}loss_{term}'] = Mean(total, num_ids)
  metrics['gradient_norm'] = Mean(optax.tree.norm(grads), jnp.ones(()))
  return (
    TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      collections=advance(collections),
      opt_state=opt_state,
    ),
    metrics,
  )


def eval_step(
  variables: PyTree,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
  weights: LossConfig,
) -> Metrics:
  """Metrics of a batch; changes nothing.

  Args:
    variables: `params` and the collections.
    batch: Rows; padding rows count for nothing.
    model: All levels.
    weights: Of the loss terms.

  Returns:
    Those of `pyramid_metrics`, and `loss_total`.
  """
  output = model.apply(variables, batch)
  terms = pyramid_losses.terms(output)
  metrics = _measure(variables, output, terms, model)
  num_ids = losses.num_ids(batch)
  total = losses.objective(terms, weights, jnp.ones(()))
  metrics['loss_total'] = Mean(total, num_ids)
  return metrics


def _measure(
  variables: PyTree,
  output: PyramidOutput,
  terms: dict[str, Array],
  model: AbstractinatorPyramid,
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
  return pyramid_metrics(output, terms, stage_sizes, nearest)
