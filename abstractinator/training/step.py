"""One step of training and one of evaluation, pure functions of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from abstractinator.config import LossConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.model.level import advance
from abstractinator.objective import losses
from abstractinator.objective.frozen import Frozen
from abstractinator.objective.metrics import Metrics
from abstractinator.objective.objectives import Objective
from abstractinator.ops.shards import BATCH_AXES, dividing_axes
from abstractinator.runs.state import TrainState, variables_of
from abstractinator.training.curriculum import Curriculum
from abstractinator.types import Array, Batch, Mean, PyTree


def accumulate(
  function: Callable[[PyTree, Batch], tuple[PyTree, PyTree, Any]],
  collections: PyTree,
  batch: Batch,
  like_sums: PyTree,
  microbatches: int,
) -> tuple[PyTree, PyTree, Any]:
  """Calls a function on one part of a batch after the other.

  Args:
    function: From collections and rows to a tree to be summed in place, the
      collections after these rows, and a second tree to be summed, of what is
      small.
    collections: Before the first part.
    batch: All rows.
    like_sums: A tree of the shapes, types and shardings of the first sums.
    microbatches: How many parts.

  Returns:
    What the function would return for the whole batch, but for rounding.
  """
  if microbatches == 1:
    return function(collections, batch)

  def part(carry, rows):
    sums, collections = carry
    more, collections, small = function(collections, rows)
    return (jax.tree.map(jnp.add, sums, more), collections), small

  start = jax.tree.map(jnp.zeros_like, like_sums), collections
  parts = jax.tree.map(lambda x: split_rows(x, microbatches), batch)
  (sums, collections), small = lax.scan(part, start, parts)
  return sums, collections, jax.tree.map(lambda x: jnp.sum(x, axis=0), small)


def split_rows(x_B: Array, parts: int) -> Array:
  """[B, ...] to [parts, B / parts, ...]; part m has the rows m, m + parts, ...

  Every device has rows of each part among its own, so that none moves.
  """
  rows = x_B.shape[0] // parts
  x = x_B.reshape(rows, parts, *x_B.shape[1:]).swapaxes(0, 1)
  axes = dividing_axes(BATCH_AXES, [rows])
  return lax.with_sharding_constraint(x, P(None, axes)) if axes else x


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
