"""One level of a run, as frequencies of the next id of each lane.

B are lanes of segments, U the codes that an id may attend to: those of its
segment and of the `lookback` segments before it.
"""

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.compression.coder import logit_frequencies
from abstractinator.config import LevelConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.model.level import Abstractinator
from abstractinator.model.transformer import StepCodes
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.types import Array, PyTree, Special


@dataclasses.dataclass(frozen=True)
class CodingShapes:
  """Sizes of the arrays of the hierarchy's coder.

  A file is decoded with the `widths`, `lane_windows` and `max_table_codes` that
  it was encoded with; it does not name them.

  Attributes:
    row_ids: Bytes of a row when a text is divided into segments, where every
      stack has a window; else rows are as long as in training.
    batch_ids: Bytes of a batch of such rows.
    widths: Numbers of lanes that a step is compiled for, ascending.
    lane_windows: Ids of a lane, in windows of the stack: those in the first
      window of a lane have less context.
    max_table_codes: Most codes that are coded with the same unigram.
  """

  row_ids: int = 4096
  batch_ids: int = 8192
  widths: tuple[int, ...] = (32, 128, 512, 2048)
  lane_windows: int = 32
  max_table_codes: int = 64

  def width_of(self, num_lanes: int) -> int:
    """Returns the smallest width that has room for a number of lanes."""
    return next(width for width in self.widths if width >= num_lanes)


@flax.struct.dataclass
class HierarchyLevel:
  """Expander of one level, which predicts ids of segments from their codes.

  Attributes:
    variables: `params` and the collections of the whole model.
    model: The whole model.
    number: Number of the level, 0 at the bottom.
    sequence_length: Ids of a row of the level in training.
    shapes: Sizes of the coder's arrays.
  """

  variables: PyTree
  model: AbstractinatorPyramid = flax.struct.field(pytree_node=False)
  number: int = flax.struct.field(pytree_node=False)
  sequence_length: int = flax.struct.field(pytree_node=False)
  shapes: CodingShapes = flax.struct.field(pytree_node=False)

  @property
  def config(self) -> LevelConfig:
    """Config of the level."""
    return self.model.config.levels[self.number]

  @property
  def sizes(self) -> tuple[int, ...]:
    """Values of each digit of an id."""
    if self.number == 0:
      return (self.model.num_ids,)
    return self.model.config.levels[self.number - 1].quantizer.stage_sizes

  @property
  def bos(self) -> int:
    """Id that the expander is fed before the first id of a lane."""
    return math.prod(self.sizes) + Special.BOS

  def lane_segments(self, num_segments: int, num_ids: int) -> int:
    """Returns how many segments form a lane, in which ids see each other.

    Args:
      num_segments: Segments of the block.
      num_ids: Ids of these segments.

    Returns:
      All segments of the block, or a power of two: with other numbers, block
      after block would need programs of its own.
    """
    c = self.config.expander
    if c.context == 'segment':
      return 1
    wanted = self.sequence_length
    if c.context == 'window':
      wanted = self.shapes.lane_windows * c.window
    fit = max(wanted * num_segments // max(num_ids, 1), 1)
    if fit >= num_segments:
      return max(num_segments, 1)
    return 1 << (fit.bit_length() - 1)

  def start(self, num_lanes: int, lane_segments: int) -> Cache:
    """Returns the cache of lanes before their first ids."""
    capacity = lane_segments * self.config.segmentation.max_length
    level = self.model.bind(self.variables).levels[self.number]
    return level.expander.init_cache(num_lanes, capacity)

  @functools.partial(jax.jit, donate_argnames='cache')
  def step(
    self,
    fed_B: Array,
    offset_B: Array,
    active_B: Array,
    codes_BU: Array,
    lowest_B: Array,
    cache: Cache,
  ) -> tuple[Array, Array, Cache]:
    """Predicts the next id of each lane; see `expander.step`.

    Args:
      fed_B: Id before it, or BOS, [B] int32.
      offset_B: Its position in its segment, [B] int32.
      active_B: Lanes that have a next id, [B] bool.
      codes_BU: Codes that it attends to, those of its own segment last, [B, U]
        int32.
      lowest_B: First segment of these that exists, 0 to `lookback`, [B] int32.
      cache: The cache from `start` or the step before; its buffers are reused.

    Returns:
      Frequencies of the first digit, [B, K] int32; the states that ids are
      predicted from, [B, D]; and the new cache.
    """
    level, codebooks = self._bound()
    vectors_BUD = level.compressor.quantizer.lookup(codes_BU)
    own_B = jnp.full_like(lowest_B, self.config.expander.lookback)
    x_BD, cache = level.expander.step(
      fed_B,
      offset_B,
      jnp.zeros_like(fed_B),
      cache,
      active_B,
      StepCodes(
        level.expander.remember(vectors_BUD),
        own_B[:, None],
        lowest_B[:, None],
      ),
      codebooks,
    )
    predicted = level.expander.vocabulary.predict(x_BD, None, codebooks)
    # Special ids, such as EOS, are never coded.
    logits_BK = predicted.logits[0][:, : self.sizes[0]]
    return logit_frequencies(logits_BK), x_BD, cache

  @functools.partial(jax.jit, static_argnames='stage')
  def digit(self, stage: int, x_BD: Array, ids_B: Array) -> Array:
    """Returns frequencies of a digit after the first, [B, K] int32.

    Args:
      stage: Number of the digit.
      x_BD: States from `step`, [B, D].
      ids_B: Ids whose earlier digits are known, [B] int32.
    """
    level, codebooks = self._bound()
    predicted = level.expander.vocabulary.predict(x_BD, ids_B, codebooks)
    return logit_frequencies(predicted.logits[stage])

  @jax.jit
  def ends(self, x_BD: Array, ids_B: Array) -> Array:
    """Returns frequencies that segments go on and end after ids, [B, 2] int32.

    Args:
      x_BD: States from `step`, [B, D].
      ids_B: The ids, [B] int32.
    """
    level, codebooks = self._bound()
    log_odds_B = level.expander.end_logits(x_BD, ids_B, codebooks)
    logits_B2 = jnp.stack([jnp.zeros_like(log_odds_B), log_odds_B], axis=-1)
    return logit_frequencies(logits_B2)

  def _bound(self) -> tuple[Abstractinator, Codebooks | None]:
    """Returns the bound level, and the codebooks of the one below."""
    levels = self.model.bind(self.variables).levels
    if self.number == 0:
      return levels[0], None
    below = levels[self.number - 1].compressor.quantizer
    return levels[self.number], below.codebooks()
