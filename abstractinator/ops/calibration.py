"""Segmentation threshold that moves until segments have the wanted length."""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax.numpy as jnp

from abstractinator.config.segmentation import MAX_THRESHOLD
from abstractinator.types import Array, Segments

# Each maps a threshold, a step and the wanted length to the next threshold. A
# step is small where lengths answer strongly, so that the threshold settles: at
# a step size of 0.05, lengths that grow with a threshold of ids one for one
# close a fifth of the gap, those that grow in proportion to it a twentieth.
MOVES: dict[str, Callable[[Array, Array, float], Array]] = {
  'bits': lambda threshold, by, length: threshold + by,
  'relative': lambda threshold, by, length: threshold * jnp.exp(by),
  'ids': lambda threshold, by, length: threshold + 4.0 * length * by,
}


@flax.struct.dataclass
class ThresholdState:
  """State of a threshold under calibration.

  Attributes:
    threshold: Threshold in the unit of its rule, [] float32.
    num_ids: Ids of the step so far, [] float32.
    num_segments: Segments of the step so far, [] float32.
    target_length: Wanted mean ids per segment; None to keep the threshold.
    step_size: Distance that one step moves the threshold at a relative error of
      1.
    move: Name of the entry of `MOVES` that moves the threshold, which gives the
      unit of `step_size`.
  """

  threshold: Array
  num_ids: Array
  num_segments: Array
  target_length: float | None = flax.struct.field(pytree_node=False)
  step_size: float = flax.struct.field(pytree_node=False)
  move: str = flax.struct.field(pytree_node=False)


def initial_state(
  threshold: float, target_length: float | None, step_size: float, move: str
) -> ThresholdState:
  """Returns a threshold before any step; see `ThresholdState`."""
  return ThresholdState(
    threshold=jnp.float32(threshold),
    num_ids=jnp.zeros((), jnp.float32),
    num_segments=jnp.zeros((), jnp.float32),
    target_length=target_length,
    step_size=step_size,
    move=move,
  )


def observe(state: ThresholdState, segments: Segments) -> ThresholdState:
  """Adds the lengths of the segments of a batch to the sums of the step."""
  num_ids = jnp.sum(segments.index_BS >= 0, dtype=jnp.float32)
  num_segments = jnp.sum(segments.count_B, dtype=jnp.float32)
  return dataclasses.replace(
    state,
    num_ids=state.num_ids + num_ids,
    num_segments=state.num_segments + num_segments,
  )


def advance(state: ThresholdState) -> ThresholdState:
  """Moves the threshold by the sums of the step, and clears them.

  The threshold rises if segments came out short, and falls if they came out
  long. It stays within the range of `config.SegmentationConfig`, also if the
  wanted length cannot be reached.
  """
  zero = jnp.zeros((), jnp.float32)
  cleared = dataclasses.replace(state, num_ids=zero, num_segments=zero)
  if state.target_length is None:
    return cleared
  length = state.num_ids / jnp.maximum(state.num_segments, 1.0)
  error = jnp.clip(1.0 - length / state.target_length, -1.0, 1.0)
  by = jnp.where(state.num_segments > 0, state.step_size * error, 0.0)
  moved = MOVES[state.move](state.threshold, by, state.target_length)
  moved = jnp.clip(moved, -MAX_THRESHOLD, MAX_THRESHOLD)
  return dataclasses.replace(cleared, threshold=moved)
