"""Coders of top codes, under a discrete top LM or an adaptive unigram.

B are lanes, N codes. Each coder is given codes, [N] int32, and returns them; a
decoder ignores their values.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.coder import (
  RangeCoder,
  code_digits,
  count_frequencies,
  logit_frequencies,
)
from abstractinator.compression.coding_shapes import CodingShapes
from abstractinator.decoding import stream
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.decoding.stream import StreamState
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.model.entropy_model import Prior
from abstractinator.model.top_lm import CodePrior
from abstractinator.ops.cache import Cache
from abstractinator.ops.digits import place_values
from abstractinator.types import Array, PyTree

# A table of counts serves for this part of the number of codes counted in it.
_TABLE_PART = 16


def code_by_counts(
  codes_N: np.ndarray,
  counts: CodeCounts,
  max_table_codes: int,
  coder: RangeCoder,
) -> np.ndarray:
  """Codes top codes by the frequencies of the codes before them; returns them.

  Encoder and decoder count equal codes in the same order. `evaluate` counts the
  bits of the same estimate.

  Args:
    codes_N: The codes.
    counts: Counts of the codes before; these are added.
    max_table_codes: Most codes that are coded with the same table.
    coder: Encoder or decoder.
  """
  found_N, start = np.zeros_like(codes_N), 0
  values = place_values(tuple(map(len, counts.counts)))
  while start < len(codes_N):
    seen = int(counts.counts[0].sum())
    stop = start + min(max(seen // _TABLE_PART, 1), max_table_codes)
    for counts_V, value in zip(counts.counts, values, strict=True):
      digits_N = codes_N[start:stop] // value % len(counts_V)
      found_N[start:stop] += value * coder.code(
        count_frequencies(counts_V), digits_N
      )
    counts.add(found_N[start:stop])
    start = stop
  return found_N


@flax.struct.dataclass
class _TopLM:
  """Discrete top LM, as frequencies of the next top code of each lane.

  To the top LM a lane is a document without an end.

  Attributes:
    variables: `params` and the collections of the whole model.
    model: The whole model, which has a discrete top LM.
  """

  variables: PyTree
  model: AbstractinatorPyramid = flax.struct.field(pytree_node=False)

  @property
  def stage_sizes(self) -> tuple[int, ...]:
    """Values of each digit of a code."""
    return self.model.config.levels[-1].quantizer.stage_sizes

  @functools.partial(jax.jit, static_argnames='stage')
  def digit(
    self, state_BY: Array, prior: CodePrior | None, stage: int, ids_B: Array
  ) -> Array:
    """Returns frequencies of a digit, [B, K] int32, given those before it."""
    top_lm = self.model.bind(self.variables).top_lm
    return logit_frequencies(top_lm.code_logits(state_BY, prior, ids_B)[stage])


@flax.struct.dataclass
class CodeTopLM(_TopLM):
  """Coder of top codes before anything else.

  Attributes:
    lane_codes: Codes of a lane.
    shapes: Sizes of the coder's arrays.
  """

  lane_codes: int = flax.struct.field(pytree_node=False)
  shapes: CodingShapes = flax.struct.field(pytree_node=False)

  def code(self, codes_N: np.ndarray, coder: RangeCoder) -> np.ndarray:
    """Codes top codes; returns the codes."""
    found_N = np.zeros_like(codes_N)
    group = self.lane_codes * self.shapes.widths[-1]
    for start in range(0, len(codes_N), group):
      count = min(len(codes_N) - start, group)
      num_lanes = self.shapes.width_of(-(-count // self.lane_codes))
      first_B = start + np.arange(num_lanes) * self.lane_codes
      state_BY, cache = self._start(num_lanes)
      for step in range(min(self.lane_codes, count)):
        # Lanes after the last one are empty, and the last one may be shorter.
        active_B = first_B + step < start + count
        at_N = first_B[active_B] + step
        ids_B = code_digits(
          self.stage_sizes,
          active_B,
          codes_N[at_N],
          functools.partial(self.digit, state_BY, None),
          coder,
        )
        found_N[at_N] = ids_B[active_B]
        state_BY, cache = self._step(ids_B, cache, active_B)
    return found_N

  @functools.partial(jax.jit, static_argnames='num_lanes')
  def _start(self, num_lanes: int) -> tuple[Array, Cache]:
    """Returns states [B, Y] before the first codes, and an empty cache."""
    top_lm = self.model.bind(self.variables).top_lm
    cache = top_lm.init_cache(num_lanes, self.lane_codes)
    return top_lm.start_state(num_lanes), cache

  @functools.partial(jax.jit, donate_argnames='cache')
  def _step(
    self, ids_B: Array, cache: Cache, active_B: Array
  ) -> tuple[Array, Cache]:
    """Returns the states [B, Y] after one more code, and the new cache."""
    pyramid = self.model.bind(self.variables)
    quantizer = pyramid.levels[-1].compressor.quantizer
    vectors_BD = quantizer.lookup(ids_B[:, None])[:, 0]
    document_B = jnp.zeros_like(ids_B)
    return pyramid.top_lm.step(vectors_BD, document_B, cache, active_B)


@flax.struct.dataclass
class StreamTopLM(_TopLM):
  """Coder of top codes as their segments open; see `decoding.stream`."""

  @functools.partial(jax.jit, static_argnames=('num_lanes', 'capacity'))
  def start(self, num_lanes: int, capacity: int) -> StreamState:
    """Returns the state before the first segments of lanes; see `stream`."""
    pyramid = self.model.bind(self.variables)
    return stream.empty(pyramid, num_lanes, capacity)

  def code(
    self,
    state: StreamState,
    opens_B: np.ndarray,
    prior: Prior | None,
    codes_N: np.ndarray,
    coder: RangeCoder,
  ) -> tuple[StreamState, np.ndarray]:
    """Codes the codes of the lanes that open a segment, of which there is one.

    Args:
      state: State after the ids before; its buffers are reused.
      opens_B: These lanes, [B] bool.
      prior: Prediction of the next ids by the entropy model, [B]; None where it
        does not run along.
      codes_N: Their codes.
      coder: Encoder or decoder.

    Returns:
      The state and the codes of these lanes.
    """
    state = self._predict(state, opens_B, prior)
    table_of = functools.partial(self.digit, state.hidden_BY, state.prior)
    codes_B = code_digits(self.stage_sizes, opens_B, codes_N, table_of, coder)
    return self._take(state, codes_B, opens_B), codes_B[opens_B]

  @functools.partial(jax.jit, donate_argnames='state')
  def _predict(
    self, state: StreamState, opens_B: Array, prior: Prior | None
  ) -> StreamState:
    """Predicts the codes of the lanes that open a segment."""
    document_B = jnp.zeros(opens_B.shape, jnp.int32)
    pyramid = self.model.bind(self.variables)
    return stream.predict(pyramid, state, document_B, opens_B, prior)

  @functools.partial(jax.jit, donate_argnames='state')
  def _take(
    self, state: StreamState, codes_B: Array, opens_B: Array
  ) -> StreamState:
    """Returns the state whose open segments have these codes."""
    pyramid = self.model.bind(self.variables)
    return stream.take(pyramid, state, codes_B, opens_B)

  @functools.partial(jax.jit, donate_argnames='state')
  def read(
    self, state: StreamState, ids_B: Array, offset_B: Array, active_B: Array
  ) -> StreamState:
    """Returns the state after ids of active lanes; see `stream.read`."""
    pyramid = self.model.bind(self.variables)
    return stream.read(pyramid, state, ids_B, offset_B, active_B)
