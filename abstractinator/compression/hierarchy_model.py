"""The levels of a run, for whoever writes codes and ids and who reads them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.byte_model import frequencies
from abstractinator.compression.segment_coder import Segments
from abstractinator.config import RunConfig
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.ops.cache import Cache
from abstractinator.training.model import make_model
from abstractinator.training.objective import OBJECTIVES
from abstractinator.training.trained import fingerprint
from abstractinator.types import Array, Batch, PyTree, Special

_BATCH_IDS = 8192
# Ids of a row that is encoded, where every stack has a window.
_ROW_IDS = 4096
# Ids of a lane, in windows: the first one has no ids before it.
_LANE_WINDOWS = 32


class HierarchyModel:
  """All levels, compiled once.

  Attributes:
    levels: Bottom first.
    stage_sizes: Values of each digit of a top code.
    fingerprint: 16 bytes that tell one model from another.
  """

  def __init__(self, config: RunConfig, variables: PyTree):
    """Compiles nothing yet.

    Args:
      config: Of the run.
      variables: `params` and the collections of it.

    Raises:
      ValueError: If the run has no codes, or a setting that is not supported.
    """
    reason = unsupported(config)
    if reason is not None:
      raise ValueError(f'{reason}, to compress under the hierarchy')
    self._model = make_model(config, jax.default_backend())
    self._variables = jax.device_put(variables)
    size = config.data.sequence_length
    self.levels = [
      HierarchyLevel(self._model, self._variables, number, size_of_level)
      for number, size_of_level in enumerate(
        config.model.sequence_lengths(size)
      )
    ]
    self.stage_sizes = config.model.levels[-1].quantizer.stage_sizes
    self.fingerprint = bytes.fromhex(fingerprint(config, variables))[:16]
    self._row_ids = _ROW_IDS if _has_windows(config) else size

  def encode(self, data: bytes) -> tuple[list[Segments], np.ndarray]:
    """A text in segments of every level, bottom first, and its top codes [N].

    Who reads it needs none of this: any division and any codes will do.

    Args:
      data: Any bytes, at least one.

    Returns:
      Both.
    """
    size = self._row_ids
    num_rows = max(_BATCH_IDS // size, 1)
    ids_N = np.frombuffer(data, np.uint8).astype(np.int32)
    missing = -len(ids_N) % (size * num_rows)
    shape = (-1, num_rows, size)
    ids = np.pad(ids_N, (0, missing)).reshape(shape)
    document = np.pad(np.zeros_like(ids_N), (0, missing), constant_values=-1)
    parts = [
      jax.device_get(_compress(self._model, self._variables, *rows))
      for rows in zip(ids, document.reshape(shape), strict=True)
    ]
    levels = [
      _join(*(np.concatenate(x) for x in zip(*rows, strict=True)), level.length)
      for level, *rows in zip(self.levels, *(x[0] for x in parts), strict=True)
    ]
    codes = [
      codes_BU[np.arange(codes_BU.shape[1]) < count_B[:, None] * queries]
      for queries in [self.levels[-1].queries]
      for _, codes_BU, count_B in parts
    ]
    return levels, np.concatenate(codes)


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
    """How many segments see each other: one lane has so many."""
    c = self._config.expander
    if c.context == 'segment':
      return 1
    wanted = self.sequence_length
    if c.context == 'window':
      wanted = _LANE_WINDOWS * c.window
    return max(wanted * num_segments // max(num_ids, 1), 1)

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


@functools.partial(jax.jit, static_argnums=0)
def _compress(model, variables, ids_BS, document_BS):
  row_B = jnp.zeros(len(ids_BS), jnp.int32)
  batch = Batch(ids_BS=ids_BS, document_BS=document_BS, row_B=row_B)
  output = model.apply(variables, batch, method='compress_all')
  of_levels = tuple(
    (batch.ids_BS, level.compressed.segments.index_BS)
    for batch, level in zip(output.batches, output.levels, strict=True)
  )
  top = output.levels[-1].compressed
  return of_levels, top.quantized.codes_BP, top.segments.count_B


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


def _join(ids_BS, index_BS, longest) -> Segments:
  """The segments of all rows, one after the other."""
  is_id_BS = index_BS >= 0
  count_B = index_BS.max(axis=1) + 1
  before_B = np.cumsum(count_B) - count_B
  segment_N = (index_BS + before_B[:, None])[is_id_BS]
  found = Segments.empty(int(count_B.sum()), longest)
  found.length_P[:] = np.bincount(segment_N, minlength=len(found.length_P))
  start_P = np.cumsum(found.length_P) - found.length_P
  offset_N = np.arange(len(segment_N)) - start_P[segment_N]
  found.ids_PL[segment_N, offset_N] = ids_BS[is_id_BS]
  return found


def _has_windows(config: RunConfig) -> bool:
  return all(
    stack.window is not None
    for level in config.model.levels
    for stack in (level.entropy_model, level.encoder)
  )


def unsupported(config: RunConfig) -> str | None:
  """What of a run cannot be compressed under, or None."""
  if not OBJECTIVES[config.objective].has_codes:
    return f"objective: got {config.objective!r}, allowed: 'all' or 'top_lm'"
  ends = config.model.levels[0].expander.ends
  if ends != 'head':
    return f"model.levels[0].expander.ends: got {ends!r}, allowed: 'head'"
  top_lm = config.model.top_lm
  if top_lm is not None and top_lm.mode == 'discrete':
    return "model.top_lm.mode: got 'discrete', allowed: no top LM, 'continuous'"
  return None
