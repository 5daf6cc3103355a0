"""State of training: everything that a step changes."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from abstractinator.config import RunConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.types import Array, Batch, PyTree


@flax.struct.dataclass
class TrainState:
  """Arrays of a run that a step changes, and nothing but arrays.

  Attributes:
    step: [] int32, number of optimizer steps done.
    params: Parameters of the model, float32.
    collections: Mutable collections of the model, `vq` and `calibration`.
    opt_state: State of the optimizer.
    ema: Moving average of the parameters; None if the run keeps none.
  """

  step: Array
  params: PyTree
  collections: PyTree
  opt_state: PyTree
  ema: PyTree | None = None


def initial_state(
  key: Array,
  model: AbstractinatorPyramid,
  optimizer: optax.GradientTransformation,
  *,
  batch_size: int,
  sequence_length: int,
  method: str = '__call__',
  has_ema: bool = False,
) -> TrainState:
  """Builds the state of step 0; meant to be jitted with shardings.

  Args:
    key: Key of jax.random.
    model: The model, a pyramid of all levels.
    optimizer: Optimizer of the parameters.
    batch_size: Rows of a batch.
    sequence_length: Ids of a row, S.
    method: Name of the method of the model that initializes it; it takes a
      batch of bytes. Modules that it does not call get no parameters.
    has_ema: Whether the state has a moving average of the parameters.

  Returns:
    The state.
  """
  batch = _zeros(batch_size, sequence_length)
  collections = dict(model.init(key, batch, method=method))
  params = collections.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    collections=collections,
    opt_state=optimizer.init(params),
    # A copy: the arrays of a state are donated one by one.
    ema=jax.tree.map(lambda x: x + 0.0, params) if has_ema else None,
  )


def abstract_variables(
  model: AbstractinatorPyramid, sequence_length: int, method: str
) -> PyTree:
  """Returns the shapes and dtypes of the variables that `model.init` computes.

  Args:
    model: The model, a pyramid of all levels.
    sequence_length: Ids of a row, S.
    method: Name of the method of the model that initializes it.
  """
  init = functools.partial(model.init, method=method)
  batch = _zeros(1, sequence_length)
  return jax.eval_shape(init, jax.random.key(0), batch)


def _zeros(batch_size: int, sequence_length: int) -> Batch:
  """Returns a batch of zeros, by whose shape a model is initialized."""
  zeros = jnp.zeros((batch_size, sequence_length), jnp.int32)
  return Batch(ids_BS=zeros, document_BS=zeros, row_B=zeros[:, 0])


def variables_of(state: TrainState) -> PyTree:
  """Returns the variables of the model: parameters and collections.

  Args:
    state: A state, or a tree like one, such as its shardings.
  """
  return {'params': state.params, **state.collections}


def averaged_variables_of(state: TrainState) -> PyTree:
  """Returns `variables_of` with averaged parameters where a run keeps them."""
  params = state.params if state.ema is None else state.ema
  return {'params': params, **state.collections}


def trained_params_field(config: RunConfig) -> str:
  """Returns the field of the state with the parameters that a run trained.

  They are the moving average if the run keeps one.
  """
  return 'ema' if config.optimizer.ema_decay > 0 else 'params'
