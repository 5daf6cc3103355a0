"""A level of a run, id by id in lanes of segments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.byte_model import frequencies
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.ops.cache import Cache
from abstractinator.types import Array, PyTree, Special

# Ids of a lane, in windows: the first one has no ids before it.
_LANE_WINDOWS = 32


@dataclasses.dataclass(frozen=True)
class HierarchyLevel:
  """A level, id by id in lanes; see `segment_coder.LevelTables`."""

  model: AbstractinatorPyramid
  variables: PyTree
  number: int
  sequence_length: int

  @property
  def _config(self):
    return self.model.config.levels[self.number]

  @property
  def queries(self) -> int:
    """Codes of a segment."""
    return self._config.pooling.num_queries

  @property
  def lookback(self) -> int:
    """Segments before its own whose codes an id sees."""
    return self._config.expander.lookback

  @property
  def length(self) -> int:
    """The most ids of a segment."""
    return self._config.segmentation.max_length

  @property
  def sizes(self) -> tuple[int, ...]:
    """Values of each digit of an id."""
    if self.number == 0:
      return (self.model.num_ids,)
    return self.model.config.levels[self.number - 1].quantizer.stage_sizes

  @property
  def bos(self) -> int:
    """What the first id of a lane is fed."""
    return int(np.prod(self.sizes)) + Special.BOS

  def lane_segments(self, num_segments: int, num_ids: int) -> int:
    """How many segments see each other: one lane has so many.

    All of them, or a power of two: of other sizes programs would be compiled
    for block after block.
    """
    c = self._config.expander
    if c.context == 'segment':
      return 1
    wanted = self.sequence_length
    if c.context == 'window':
      wanted = _LANE_WINDOWS * c.window
    fit = max(wanted * num_segments // max(num_ids, 1), 1)
    if fit >= num_segments:
      return max(num_segments, 1)
    return 1 << (fit.bit_length() - 1)

  def start(self, num_lanes: int, lane_segments: int) -> Cache:
    """Of lanes before their first ids."""
    return _start(
      self.model,
      self.variables,
      self.number,
      num_lanes,
      lane_segments * self.length,
    )

  def step(
    self,
    fed_N: np.ndarray,
    offset_N: np.ndarray,
    is_active_N: np.ndarray,
    codes_NU: np.ndarray,
    lowest_N: np.ndarray,
    cache: Cache,
  ) -> tuple[Array, Array, Cache]:
    """Predicts the next id of each lane; see `expander.step`.

    Args:
      fed_N: [N] int32, the id before, or BOS.
      offset_N: [N] int32, position in the segment.
      is_active_N: [N] bool.
      codes_NU: [N, U] int32, codes of the segment and of `lookback` before it.
      lowest_N: [N] int32, the first segment of these that is there.
      cache: From `start` or the step before; it is used up.

    Returns:
      [N, K] int32 frequencies of the first digit, states [N, D], the cache.
    """
    return _step(
      self.model,
      self.number,
      self.variables,
      fed_N,
      offset_N,
      is_active_N,
      codes_NU,
      lowest_N,
      cache,
    )

  def digit(self, stage: int, x_ND: Array, ids_N: np.ndarray) -> Array:
    """[N, K] int32 frequencies of a digit, given ids of those before it."""
    return _digit(self.model, self.number, stage, self.variables, x_ND, ids_N)

  def ends(self, x_ND: Array, ids_N: np.ndarray) -> Array:
    """[N, 2] int32 frequencies of that segments go on, and end, after ids."""
    return _ends(self.model, self.number, self.variables, x_ND, ids_N)

  def take(self, cache: Cache, kept_N: np.ndarray) -> Cache:
    """The cache of some lanes."""
    return _take(cache, kept_N)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _start(model, variables, number, num_lanes, capacity):
  return model.apply(
    variables,
    method=lambda m: m.levels[number].expander.init_cache(num_lanes, capacity),
  )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=8)
def _step(
  model,
  number,
  variables,
  fed_N,
  offset_N,
  is_active_N,
  codes_NU,
  lowest_N,
  cache,
):
  def run(pyramid):
    level, codebooks = pyramid.levels[number], _codebooks(pyramid, number)
    own_N1 = jnp.full_like(lowest_N, level.config.expander.lookback)[:, None]
    x_ND, new = level.expander.step(
      fed_N,
      offset_N,
      jnp.zeros_like(fed_N),
      cache,
      is_active_N,
      (
        level.compressor.quantizer.lookup(codes_NU),
        own_N1,
        lowest_N[:, None],
      ),
      codebooks,
    )
    predicted = level.expander.vocabulary.predict(x_ND, None, codebooks)
    size = level.expander.sizes[0]
    return frequencies(predicted.logits[0][:, :size]), x_ND, new

  return model.apply(variables, method=run)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _digit(model, number, stage, variables, x_ND, ids_N):
  def run(pyramid):
    predicted = pyramid.levels[number].expander.vocabulary.predict(
      x_ND, ids_N, _codebooks(pyramid, number)
    )
    return frequencies(predicted.logits[stage])

  return model.apply(variables, method=run)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ends(model, number, variables, x_ND, ids_N):
  def run(pyramid):
    log_odds_N = pyramid.levels[number].expander.end_logits(
      x_ND, ids_N, _codebooks(pyramid, number)
    )
    goes_on_N = jnp.zeros_like(log_odds_N)
    return frequencies(jnp.stack([goes_on_N, log_odds_N], axis=-1))

  return model.apply(variables, method=run)


@jax.jit
def _take(cache, kept_N):
  return jax.tree.map(lambda x: x[kept_N], cache)


def _codebooks(pyramid, number):
  if number == 0:
    return None
  return pyramid.levels[number - 1].compressor.quantizer.codebooks()
