"""One step of training and one of evaluation, pure functions of arrays."""

import jax
import jax.numpy as jnp
import optax

from abstractinator import losses
from abstractinator.config import LossConfig
from abstractinator.metrics import Metrics, level_metrics
from abstractinator.modules.abstractinator import Abstractinator, advance
from abstractinator.training.state import TrainState
from abstractinator.types import Batch, Mean


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  model: Abstractinator,
  optimizer: optax.GradientTransformation,
  weights: LossConfig,
  seed: int,
) -> tuple[TrainState, Metrics]:
  """Moves the parameters once, and the codebook and threshold with them.

  Args:
    state: Of the step before.
    batch: Rows of all devices.
    model: The level.
    optimizer: What turns gradients into updates.
    weights: Of the loss terms.
    seed: Of the run. What is random in a step follows from it, the number of
      the step and the rows.

  Returns:
    The next state, and the metrics of the batch before the update: those of
    `level_metrics`, `loss_total` and `loss_*` (nats per id, unweighted),
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
    terms = losses.terms(output, batch)
    loss = losses.objective(terms, weights, num_ids)
    return loss, (output, collections, terms)

  (loss, (output, collections, terms)), grads = jax.value_and_grad(
    loss_fn, has_aux=True
  )(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  metrics = level_metrics(
    output, batch, terms, model.config.quantizer.stage_sizes
  )
  metrics['loss_total'] = Mean(loss * num_ids, num_ids)
  for name, total in terms.items():
    metrics[f'loss_{name}'] = Mean(total, num_ids)
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
  variables: dict, batch: Batch, *, model: Abstractinator, weights: LossConfig
) -> Metrics:
  """Metrics of a batch; changes nothing.

  Args:
    variables: `params` and the collections.
    batch: Rows; padding rows count for nothing.
    model: The level.
    weights: Of the loss terms.

  Returns:
    Those of `level_metrics`, and `loss_total`.
  """
  output = model.apply(variables, batch)
  terms = losses.terms(output, batch)
  metrics = level_metrics(
    output, batch, terms, model.config.quantizer.stage_sizes
  )
  num_ids = losses.num_ids(batch)
  total = losses.objective(terms, weights, jnp.ones(()))
  metrics['loss_total'] = Mean(total, num_ids)
  return metrics
