"""One training step, a pure function of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from abstractinator.config import LossConfig
from abstractinator.model.pyramid import Pyramid, advance_collections
from abstractinator.objective import losses
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.learning import Learning
from abstractinator.objective.losses import Terms
from abstractinator.objective.metrics import Metrics
from abstractinator.objective.objectives import Objective
from abstractinator.ops.shards import BATCH_AXES, dividing_axes
from abstractinator.runs.state import TrainState, variables_of
from abstractinator.types import Array, Batch, Mean, PyTree


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  model: Pyramid,
  optimizer: optax.GradientTransformation,
  weights: LossConfig,
  objective: Objective,
  seed: int,
  microbatches: int = 1,
  ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
  """Updates the parameters once, and with them codebooks and thresholds.

  Args:
    state: State after the step before.
    batch: Rows of all devices.
    model: The model that is trained.
    optimizer: Optimizer that turns gradients into updates.
    weights: Weights of the loss terms.
    objective: The objective of the run.
    seed: Seed of the run. Random choices of a step follow from it, from the
      number of the step and from the rows.
    microbatches: Number of parts that the batch is split into, computed one
      after the other. More parts need less memory; the step is the same but
      for rounding.
    ema_decay: Decay of the moving average of the parameters, if the state has
      one.

  Returns:
    The next state, and the metrics of the batch before the update: metrics of
    the objective, `loss_total` and every term as `loss_*` (nats per id of the
    first level, unweighted), and `gradient_norm` before clipping.
  """
  learning = Learning(model.config, weights)
  num_ids = losses.num_ids(batch)
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def loss_of(params, collections, rows):
    output, collections = model.apply(
      {'params': learning.stop_gradients(params), **collections},
      rows,
      method=objective.method,
      mutable=list(collections),
      rngs={'byte_dropout': key},
    )
    terms = objective.terms(output)
    learned = learning.learned(terms, state.step)
    loss = losses.objective(learned, weights, num_ids)
    return loss, (output, collections, terms)

  def gradients_of(collections, rows):
    (loss, (output, collections, terms)), grads = jax.value_and_grad(
      loss_of, has_aux=True
    )(state.params, collections, rows)
    metrics = objective.measure(variables_of(state), output, terms, model)
    return grads, collections, (loss, terms, metrics)

  grads, collections, (loss, terms, metrics) = accumulate(
    gradients_of, state.collections, batch, state.params, microbatches
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  variables = learning.restore(
    {'params': params, **advance_collections(collections)},
    variables_of(state),
    state.step,
  )
  params, ema = variables.pop('params'), state.ema
  if ema is not None:
    ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
    # The average of a constant, rounded every step, would drift away from it.
    ema = learning.restore({'params': ema}, {'params': params})['params']
  next_state = TrainState(state.step + 1, params, variables, opt_state, ema)
  return next_state, metrics | _loss_metrics(loss, terms, grads, num_ids)


def _loss_metrics(
  loss: Array, terms: Terms, grads: PyTree, num_ids: Array
) -> Metrics:
  """Computes the metrics that every objective has; see `train_step`."""
  whole = {
    'loss_total': Mean(loss * num_ids, num_ids),
    'gradient_norm': Mean(optax.tree.norm(grads), jnp.ones(())),
  }
  return ByLevel(whole=whole) | terms.apply(
    lambda of_level: {
      f'loss_{name}': Mean(total, num_ids) for name, total in of_level.items()
    }
  )


def accumulate(
  function: Callable[[PyTree, Batch], tuple[PyTree, PyTree, Any]],
  collections: PyTree,
  batch: Batch,
  like_sums: PyTree,
  microbatches: int,
) -> tuple[PyTree, PyTree, Any]:
  """Calls a function on one part of a batch after the other.

  Args:
    function: From collections and rows to a tree that is summed in place, the
      collections after these rows, and a second, small tree that is summed at
      the end.
    collections: Collections before the first part.
    batch: All rows.
    like_sums: A tree with the shapes, types and shardings of the first sums.
    microbatches: Number of parts.

  Returns:
    The result of the function for the whole batch, but for rounding.
  """
  if microbatches == 1:
    return function(collections, batch)

  def part(carry, rows):
    sums, collections = carry
    more, collections, small = function(collections, rows)
    return (jax.tree.map(jnp.add, sums, more), collections), small

  start = jax.tree.map(jnp.zeros_like, like_sums), collections
  rows = jax.tree.map(lambda x: split_rows(x, microbatches), batch)
  (sums, collections), small = lax.scan(part, start, rows)
  return sums, collections, jax.tree.map(lambda x: jnp.sum(x, axis=0), small)


def split_rows(x_B: Array, parts: int) -> Array:
  """Splits rows into parts; part m has the rows m, m + parts, and so on.

  Every device has rows of each part among its own, so that none moves.

  Args:
    x_B: Rows, [B, ...].
    parts: Number of parts, a divisor of B.

  Returns:
    [parts, B / parts, ...].
  """
  rows = x_B.shape[0] // parts
  x = x_B.reshape(rows, parts, *x_B.shape[1:]).swapaxes(0, 1)
  axes = dividing_axes(BATCH_AXES, [rows])
  return lax.with_sharding_constraint(x, P(None, axes)) if axes else x
