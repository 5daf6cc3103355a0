"""A level of a run, id by id in lanes of segments."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.byte_model import frequencies
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.ops.cache import Cache
from abstractinator.types import Array, PyTree, Special

# Ids of a lane, in windows: the first one has no ids before it.
_LANE_WINDOWS = 32


@flax.struct.dataclass
class HierarchyLevel:
  """A level, id by id in lanes; see `segment_coder.LevelTables`.

  Attributes:
    variables: `params` and the collections of the whole model.
    model: Of all levels.
    number: Of this one, 0 at the bottom.
    sequence_length: Ids of a row that it was trained on.
  """

  variables: PyTree
  model: AbstractinatorPyramid = flax.struct.field(pytree_node=False)
  number: int = flax.struct.field(pytree_node=False)
  sequence_length: int = flax.struct.field(pytree_node=False)

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
    capacity = lane_segments * self.length

    def run(pyramid):
      expander = pyramid.levels[self.number].expander
      return expander.init_cache(num_lanes, capacity)

    return self.model.apply(self.variables, method=run)

  @functools.partial(jax.jit, donate_argnames='cache')
  def step(
    self,
    fed_N: Array,
    offset_N: Array,
    is_active_N: Array,
    codes_NU: Array,
    lowest_N: Array,
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

    def run(pyramid):
      level, codebooks = self._parts(pyramid)
      vectors_NUD = level.compressor.quantizer.lookup(codes_NU)
      remembered = level.expander.remember(vectors_NUD)
      own_N1 = jnp.full_like(lowest_N, self.lookback)[:, None]
      x_ND, new = level.expander.step(
        fed_N,
        offset_N,
        jnp.zeros_like(fed_N),
        cache,
        is_active_N,
        (remembered, own_N1, lowest_N[:, None]),
        codebooks,
      )
      predicted = level.expander.vocabulary.predict(x_ND, None, codebooks)
      # What is no id, such as EOS, is never coded.
      return frequencies(predicted.logits[0][:, : self.sizes[0]]), x_ND, new

    return self.model.apply(self.variables, method=run)

  @functools.partial(jax.jit, static_argnames='stage')
  def digit(self, stage: int, x_ND: Array, ids_N: Array) -> Array:
    """[N, K] int32 frequencies of a digit, given ids of those before it."""

    def run(pyramid):
      level, codebooks = self._parts(pyramid)
      predicted = level.expander.vocabulary.predict(x_ND, ids_N, codebooks)
      return frequencies(predicted.logits[stage])

    return self.model.apply(self.variables, method=run)

  @jax.jit
  def ends(self, x_ND: Array, ids_N: Array) -> Array:
    """[N, 2] int32 frequencies of that segments go on, and end, after ids."""

    def run(pyramid):
      level, codebooks = self._parts(pyramid)
      log_odds_N = level.expander.end_logits(x_ND, ids_N, codebooks)
      goes_on_N = jnp.zeros_like(log_odds_N)
      return frequencies(jnp.stack([goes_on_N, log_odds_N], axis=-1))

    return self.model.apply(self.variables, method=run)

  def take(self, cache: Cache, kept_N: np.ndarray) -> Cache:
    """The cache of some lanes."""
    return _take(cache, kept_N)

  def _parts(self, pyramid):
    """The bound level, and the codebooks of the one below."""
    if self.number == 0:
      return pyramid.levels[0], None
    below = pyramid.levels[self.number - 1].compressor.quantizer
    return pyramid.levels[self.number], below.codebooks()


@jax.jit
def _take(cache, kept_N):
  return jax.tree.map(lambda x: x[kept_N], cache)
