"""One step of training and one of evaluation, pure functions of arrays."""

import jax
import jax.numpy as jnp
import optax

from abstractinator import losses
from abstractinator.config import LossConfig
from abstractinator.metrics import Metrics
from abstractinator.modules.abstractinator import advance
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.training.accumulation import accumulate
from abstractinator.training.curriculum import Curriculum
from abstractinator.training.objective import Objective
from abstractinator.training.parts import Frozen
from abstractinator.training.state import TrainState, variables_of
from abstractinator.types import Batch, Mean, PyTree


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
  optimizer: optax.GradientTransformation,
  weights: LossConfig,
  objective: Objective,
  seed: int,
  microbatches: int = 1,
  ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
  """Moves the parameters once, and the codebook and threshold with them.

  Args:
    state: Of the step before.
    batch: Rows of all devices.
    model: All levels.
    optimizer: What turns gradients into updates.
    weights: Of the loss terms.
    objective: What is trained.
    seed: Of the run. What is random in a step follows from it, the number of
      the step and the rows.
    microbatches: How many parts of the batch to go through one after the other;
      they need less memory, and come to the same step.
    ema_decay: Of the moving average of the parameters, if the state has one.

  Returns:
    The next state, and the metrics of the batch before the update: those of
    the objective, `loss_total` and `loss_*` (nats per byte-level id,
    unweighted; after the prefix of a level, if there are several),
    `gradient_norm` before clipping.
  """
  num_ids = losses.num_ids(batch)
  frozen, num_levels = Frozen(model.config), len(model.config.levels)
  curriculum = Curriculum(
    weights, num_levels, has_top_lm=model.config.top_lm is not None
  )
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def loss_fn(params, collections, batch):
    output, collections = model.apply(
      {'params': frozen.stop_gradients(params), **collections},
      batch,
      method=objective.method,
      mutable=list(collections),
      rngs={'byte_dropout': key},
    )
    terms = objective.terms(output)
    learned = frozen.learned(curriculum.joined(terms, state.step))
    loss = losses.objective(learned, weights, num_ids, num_levels)
    return loss, (output, collections, terms)

  def gradients(collections, batch):
    (loss, (output, collections, terms)), grads = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params, collections, batch)
    metrics = objective.measure(variables_of(state), output, terms, model)
    return grads, collections, (loss, terms, metrics)

  grads, collections, (loss, terms, metrics) = accumulate(
    gradients, state.collections, batch, state.params, microbatches
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  metrics['loss_total'] = Mean(loss * num_ids, num_ids)
  for name, total in terms.items():
    prefix, slash, term = name.rpartition('/')
    metrics[f'{prefix}{slash}loss_{term}'] = Mean(total, num_ids)
  metrics['gradient_norm'] = Mean(optax.tree.norm(grads), jnp.ones(()))
  params = optax.apply_updates(state.params, updates)
  params = curriculum.hold(params, state.params, state.step)
  collections = frozen.restore(advance(collections), state.collections)
  ema = state.ema
  if ema is not None:
    ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
    # The average of a constant, rounded every step, would drift away from it.
    ema = frozen.restore({'params': ema}, {'params': params})['params']
  return (
    TrainState(
      step=state.step + 1,
      params=params,
      collections={
        name: curriculum.hold(after, state.collections[name], state.step)
        for name, after in collections.items()
      },
      opt_state=opt_state,
      ema=ema,
    ),
    metrics,
  )


def eval_step(
  variables: PyTree,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
  weights: LossConfig,
  objective: Objective,
) -> Metrics:
  """Metrics of a batch; changes nothing.

  Args:
    variables: `params` and the collections.
    batch: Rows; padding rows count for nothing.
    model: All levels.
    weights: Of the loss terms.
    objective: What is trained.

  Returns:
    Those of the objective, and `loss_total`.
  """
  output = model.apply(variables, batch, method=objective.method)
  terms = objective.terms(output)
  metrics = objective.measure(variables, output, terms, model)
  num_ids = losses.num_ids(batch)
  learned = Frozen(model.config).learned(terms)
  total = losses.objective(
    learned, weights, jnp.ones(()), len(model.config.levels)
  )
  metrics['loss_total'] = Mean(total, num_ids)
  return metrics
