"""Everything a step changes."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.types import Array, Batch, PyTree


@flax.struct.dataclass
class TrainState:
  """Arrays only; what they belong to is known where they are used.

  Attributes:
    step: [] int32, optimizer steps done.
    params: Parameters, float32.
    collections: Mutable collections of the model, `vq` and `calibration`.
    opt_state: Of the optimizer.
    ema: Moving average of the parameters; None without one.
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
    key: Of jax.random.
    model: All levels.
    optimizer: Whose state is a part of it.
    batch_size: Rows of a batch.
    sequence_length: S.
    method: Of the model: what it uses has parameters.
    has_ema: Whether there is a moving average of the parameters.

  Returns:
    The state.
  """
  zeros = jnp.zeros((batch_size, sequence_length), jnp.int32)
  batch = Batch(ids_BS=zeros, document_BS=zeros, row_B=zeros[:, 0])
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


def abstract_state(
  model: AbstractinatorPyramid,
  sequence_length: int,
  *,
  optimizer: optax.GradientTransformation | None = None,
  method: str = '__call__',
) -> TrainState:
  """Shapes and types of `initial_state` without computing it.

  Args:
    model: All levels.
    sequence_length: S.
    optimizer: As of `initial_state`; without one `opt_state` is empty.
    method: As of `initial_state`.

  Returns:
    A state of `jax.ShapeDtypeStruct`.
  """
  init = functools.partial(
    initial_state,
    model=model,
    optimizer=optax.identity() if optimizer is None else optimizer,
    batch_size=1,
    sequence_length=sequence_length,
    method=method,
  )
  return jax.eval_shape(init, jax.random.key(0))


def variables_of(state: TrainState) -> PyTree:
  """What the model needs of a state, or of its shardings."""
  return {'params': state.params, **state.collections}


def averaged_variables_of(state: TrainState) -> PyTree:
  """The same with the moving average of the parameters, if there is one."""
  params = state.params if state.ema is None else state.ema
  return {'params': params, **state.collections}
