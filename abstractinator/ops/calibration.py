"""A segmentation threshold that moves until segments have the wanted length."""

import flax.struct
import jax.numpy as jnp

from abstractinator.types import Array, Segments


@flax.struct.dataclass
class ThresholdState:
  """A threshold under calibration.

  Attributes:
    threshold_bits: [] float32.
    num_ids: [] float32, ids of the step so far.
    num_segments: [] float32, segments of the step so far.
    target_length: Wanted mean ids per segment, None to keep the threshold.
    step_bits: How far one step moves the threshold at a relative error of 1.
  """

  threshold_bits: Array
  num_ids: Array
  num_segments: Array
  target_length: float | None = flax.struct.field(pytree_node=False)
  step_bits: float = flax.struct.field(pytree_node=False)


def initial_state(
  threshold_bits: float, target_length: float | None, step_bits: float
) -> ThresholdState:
  """A threshold before any step."""
  return ThresholdState(
    threshold_bits=jnp.float32(threshold_bits),
    num_ids=jnp.zeros((), jnp.float32),
    num_segments=jnp.zeros((), jnp.float32),
    target_length=target_length,
    step_bits=step_bits,
  )


def observe(state: ThresholdState, segments: Segments) -> ThresholdState:
  """Adds the lengths of a batch to the sums of the step."""
  num_ids = jnp.sum(segments.index_BS >= 0, dtype=jnp.float32)
  num_segments = jnp.sum(segments.count_B, dtype=jnp.float32)
  return state.replace(
    num_ids=state.num_ids + num_ids,
    num_segments=state.num_segments + num_segments,
  )


def advance(state: ThresholdState) -> ThresholdState:
  """Moves the threshold up where segments came out short, down where long."""
  zero = jnp.zeros((), jnp.float32)
  cleared = state.replace(num_ids=zero, num_segments=zero)
  if state.target_length is None:
    return cleared
  length = state.num_ids / jnp.maximum(state.num_segments, 1.0)
  error = jnp.clip(1.0 - length / state.target_length, -1.0, 1.0)
  move = jnp.where(state.num_segments > 0, state.step_bits * error, 0.0)
  return cleared.replace(threshold_bits=state.threshold_bits + move)
