"""Top codes under the top LM of a run, in lanes side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.byte_model import frequencies
from abstractinator.compression.segment_coder import (
  WIDTHS,
  Code,
  code_digits,
  width_of,
)
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.ops.digits import decompose
from abstractinator.types import PyTree

# Codes of a lane, in windows: the first one has no codes before it.
_LANE_WINDOWS = 32


class CodeTopLM:
  """What a discrete top LM takes codes to cost, in tables of whole numbers.

  A lane is what a document is to it, without an end.
  """

  def __init__(
    self,
    model: AbstractinatorPyramid,
    variables: PyTree,
    sequence_length: int,
  ):
    """Compiles nothing yet.

    Args:
      model: Of the run, with a discrete top LM.
      variables: Of it.
      sequence_length: Bytes of a row.
    """
    self._model, self._variables = model, variables
    window = model.config.top_lm.stack.window
    self._lane_codes = (
      model.config.num_top_codes(sequence_length)
      if window is None
      else _LANE_WINDOWS * window
    )
    self._sizes = model.config.levels[-1].quantizer.stage_sizes

  def copy(self) -> 'CodeTopLM':
    """Itself, as it learns nothing."""
    return self

  def code(self, codes_N: np.ndarray, code: Code) -> np.ndarray:
    """Codes [N] int32, which are found where `code` reads."""
    found_N = np.zeros_like(codes_N)
    group = self._lane_codes * WIDTHS[-1]
    for start in range(0, len(codes_N), group):
      stop = min(start + group, len(codes_N))
      self._code_lanes(codes_N[start:stop], found_N[start:stop], code)
    return found_N

  def _code_lanes(self, codes_N, found_N, code):
    first_A = np.arange(0, len(codes_N), self._lane_codes)
    lanes = width_of(len(first_A))
    state_BY, cache = _start(
      self._model, self._variables, lanes, self._lane_codes
    )
    for step in range(min(self._lane_codes, len(codes_N))):
      # Only the last lane may be shorter.
      at_A = first_A + step
      at_A = at_A[at_A < len(codes_N)]
      active_A = np.arange(len(at_A))

      def digit(stage, ids_B, state_BY=state_BY):
        return _digit(self._model, stage, self._variables, state_BY, ids_B)

      ids_B = code_digits(
        self._sizes, lanes, active_A, codes_N[at_A], digit, code
      )
      found_N[at_A] = ids_B[active_A]
      state_BY, cache = _step(
        self._model,
        self._variables,
        ids_B,
        cache,
        np.arange(lanes) < len(at_A),
      )


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _start(model, variables, num_lanes, capacity):
  def run(pyramid):
    return (
      pyramid.top_lm.start_state(num_lanes),
      pyramid.top_lm.init_cache(num_lanes, capacity),
    )

  return model.apply(variables, method=run)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _digit(model, stage, variables, state_BY, ids_B):
  def run(pyramid):
    sizes = model.config.levels[-1].quantizer.stage_sizes
    logits = pyramid.top_lm.code_head(state_BY, decompose(ids_B, sizes))
    return frequencies(logits[stage])

  return model.apply(variables, method=run)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(model, variables, ids_B, cache, is_active_B):
  def run(pyramid):
    quantizer = pyramid.levels[-1].compressor.quantizer
    return pyramid.top_lm.step(
      quantizer.lookup(ids_B[:, None])[:, 0],
      jnp.zeros_like(ids_B),
      cache,
      is_active_B,
    )

  return model.apply(variables, method=run)
