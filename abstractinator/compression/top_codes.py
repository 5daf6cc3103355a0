"""Coders of top codes, under a discrete top LM or an adaptive unigram.

B are lanes of codes, N codes. Each coder is given codes, [N] int32, and returns
them; a decoder ignores their values.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.coder import (
  RangeCoder,
  count_frequencies,
  logit_frequencies,
)
from abstractinator.compression.segment_coder import CodingShapes, code_digits
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.ops.cache import Cache
from abstractinator.ops.digits import decompose, place_values
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
class CodeTopLM:
  """Discrete top LM, as frequencies of the next top code of each lane.

  To the top LM a lane is a document without an end.

  Attributes:
    variables: `params` and the collections of the whole model.
    model: The whole model, which has a discrete top LM.
    lane_codes: Codes of a lane.
    shapes: Sizes of the coder's arrays.
  """

  variables: PyTree
  model: AbstractinatorPyramid = flax.struct.field(pytree_node=False)
  lane_codes: int = flax.struct.field(pytree_node=False)
  shapes: CodingShapes = flax.struct.field(pytree_node=False)

  def code(self, codes_N: np.ndarray, coder: RangeCoder) -> np.ndarray:
    """Codes top codes; returns the codes."""
    found_N = np.zeros_like(codes_N)
    stage_sizes = self.model.config.levels[-1].quantizer.stage_sizes
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
          stage_sizes,
          active_B,
          codes_N[at_N],
          functools.partial(self._digit, state_BY),
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

  @functools.partial(jax.jit, static_argnames='stage')
  def _digit(self, state_BY: Array, stage: int, ids_B: Array) -> Array:
    """Returns frequencies of a digit, [B, K] int32, given those before it."""
    sizes = self.model.config.levels[-1].quantizer.stage_sizes
    top_lm = self.model.bind(self.variables).top_lm
    logits = top_lm.code_head(state_BY, decompose(ids_B, sizes))
    return logit_frequencies(logits[stage])

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
