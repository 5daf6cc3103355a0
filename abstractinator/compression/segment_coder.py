"""Coder of the ids of segments, given their codes, level by level.

Encoder and decoder run the same loop over lanes of segments: each step codes
the next id of every active lane, and whether its segment ends there. Where top
codes are a stream, the code of a segment is coded before its first id. B are
all lanes of a step, N the active ones, U the codes that an id may attend to:
those of its segment and of the `lookback` segments before it.

With `ends='head'` the head of the expander predicts the ends, and lanes are of
equally many segments. With 'entropy' the rule of the compressor does, over the
ids of the lane so far, and lanes are the rows that the compressor divided. Ends
are coded all the same: where the rule computes other floats than it did on
whole rows, and at the ends of rows, this costs a few bits.
"""

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.coder import (
  PRECISION_BITS,
  RangeCoder,
  code_digits,
  logit_frequencies,
)
from abstractinator.compression.coding_shapes import CodingShapes
from abstractinator.compression.top_codes import StreamTopLM
from abstractinator.config import LevelConfig
from abstractinator.decoding import ends
from abstractinator.decoding.prompt import codebooks_below
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.decoding.segments import flat_spelling
from abstractinator.decoding.stream import StreamState
from abstractinator.model.attention import CodeKeyValues
from abstractinator.model.entropy_model import Prior
from abstractinator.model.level import Abstractinator
from abstractinator.model.transformer import StepCodes
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.ops.dictionary import Spelling
from abstractinator.types import Array, PyTree, Special

# Frequency of an end that is not as the rule says: 12 bits. Others take 0.0004.
_SURPRISE = 1 << (PRECISION_BITS - 12)


@flax.struct.dataclass
class SegmentCoder:
  """Coder of the segments of one level, by the expander of the level.

  Attributes:
    variables: `params` and the collections of the whole model.
    model: The whole model.
    number: Number of the level, 0 at the bottom.
    sequence_length: Ids of a row of the level in training.
    row_ids: Bytes of a row of the bottom level when a text is divided.
    shapes: Sizes of the coder's arrays.
  """

  variables: PyTree
  model: AbstractinatorPyramid = flax.struct.field(pytree_node=False)
  number: int = flax.struct.field(pytree_node=False)
  sequence_length: int = flax.struct.field(pytree_node=False)
  row_ids: int = flax.struct.field(pytree_node=False)
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
  def has_rule(self) -> bool:
    """True if the rule of the compressor predicts the ends of segments."""
    return self.config.expander.ends == 'entropy'

  @property
  def is_stream(self) -> bool:
    """True if each code is coded as its segment opens."""
    config = self.model.config
    return config.streams and self.number == len(config.levels) - 1

  def num_lane_numbers(self, num_ids: int) -> int:
    """Returns how many `lane_numbers` a block of so many bytes has."""
    return -(-num_ids // self.row_ids) if self.has_rule else 1

  def lane_numbers(self, length_P: np.ndarray) -> list[int]:
    """Returns numbers that say which segments form lanes.

    They are the number of segments of all lanes but the last; with the rule the
    numbers of segments of each row.

    Args:
      length_P: Number of ids of each segment of the block, [P] int.
    """
    if not self.has_rule:
      return [self.lane_segments(length_P)]
    first_P = np.cumsum(length_P) - length_P
    return np.bincount(first_P // self.row_ids).tolist()

  def first_segments(self, numbers: list[int], count: int) -> np.ndarray:
    """Returns the first segment of each lane, [N] int.

    Args:
      numbers: Numbers from `lane_numbers`.
      count: Number of segments of the block.

    Raises:
      ValueError: If the numbers do not fit.
    """
    if self.has_rule:
      if min(numbers, default=1) < 1 or sum(numbers) != count:
        raise ValueError(
          f'got rows of {numbers[:9]} segments, allowed: {count} in all, at'
          ' least 1 each'
        )
      return np.cumsum([0, *numbers[:-1]])[: len(numbers)]
    (lane_segments,) = numbers
    if not 0 < lane_segments <= max(count, 1):
      raise ValueError(
        f'got lanes of {lane_segments} segments, allowed: 1 to {count}'
      )
    return np.arange(0, count, lane_segments)

  def lane_segments(self, length_P: np.ndarray) -> int:
    """Returns how many segments of a block form a lane, whose ids see others.

    It is all segments of the block, or a power of two: with other numbers,
    block after block would need programs of its own. To a stream a lane is as
    long as a row in training.

    Args:
      length_P: Number of ids of each segment of the block, [P] int.
    """
    c = self.config.expander
    if c.context == 'segment' and not self.is_stream:
      return 1
    wanted = self.sequence_length
    if c.context == 'window' and not self.is_stream:
      wanted = self.shapes.lane_windows * c.window
    num_segments, num_ids = len(length_P), int(length_P.sum())
    fit = max(wanted * num_segments // max(num_ids, 1), 1)
    if fit >= num_segments:
      return max(num_segments, 1)
    return 1 << (fit.bit_length() - 1)

  def code(
    self,
    codes_N: np.ndarray,
    known: tuple[np.ndarray, np.ndarray] | None,
    lane_numbers: list[int],
    coder: RangeCoder,
  ) -> np.ndarray:
    """Codes the ids and ends of segments.

    Args:
      codes_N: Codes of the P segments, Q of each, [N] int32. Those of a stream
        are coded as well; a decoder ignores their values.
      known: Ids of all segments in order, [N] int32, and the number of ids of
        each, [P] int; None for a decoder.
      lane_numbers: Numbers from `lane_numbers`; the segments of a lane are
        coded one after the other.
      coder: Encoder or decoder.

    Returns:
      The ids of all segments in order, [N] int32.

    Raises:
      ValueError: If the data of a decoder was not written like that.
    """
    codes_PQ = codes_N.reshape(-1, self.config.pooling.num_queries).copy()
    count = len(codes_PQ)
    first_N = self.first_segments(lane_numbers, count)
    stop_N = np.append(first_N[1:], count)
    offset_L = np.arange(self.config.segmentation.max_length)
    ids_PL = np.zeros((count, len(offset_L)), np.int32)
    length_P = np.zeros(count, np.int32)
    if known is not None:
      ids_N, length_P[:] = known
      ids_PL[offset_L < length_P[:, None]] = ids_N
    capacity = self.config.segmentation.max_length * lane_numbers[0]
    if self.has_rule:
      capacity = self.row_ids
    width = self.shapes.widths[-1]
    for start in range(0, len(first_N), width):
      part = slice(start, start + width)
      lanes = self._start(first_N[part], stop_N[part], capacity)
      while lanes.active_B.any():
        lanes.narrow(self.shapes.width_of(int(lanes.active_B.sum())))
        self._code_next(codes_PQ, lanes, ids_PL, length_P, coder)
    return ids_PL[offset_L < length_P[:, None]]

  def _start(
    self, first_N: np.ndarray, stop_N: np.ndarray, capacity: int
  ) -> '_Lanes':
    """Returns lanes before their first ids, as many as a step has or more."""
    size = self.shapes.width_of(len(first_N))
    missing = size - len(first_N)
    level, _ = self._bound()
    return _Lanes(
      at_B=np.pad(first_N, (0, missing)),
      stop_B=np.pad(stop_N, (0, missing)),
      active_B=np.arange(size) < len(first_N),
      offset_B=np.zeros(size, np.int32),
      fed_B=np.full(size, self._bos, np.int32),
      cache=level.expander.init_cache(size, capacity),
      ends=self._start_rule(size) if self.has_rule else None,
      stream=self._top_lm.start(size, capacity) if self.is_stream else None,
    )

  def _code_next(
    self,
    codes_PQ: np.ndarray,
    lanes: '_Lanes',
    ids_PL: np.ndarray,
    length_P: np.ndarray,
    coder: RangeCoder,
  ) -> None:
    """Codes the next id of each active lane, and whether its segment ends.

    A decoder fills in `ids_PL`, 0 past the ends of segments, `length_P`, and
    the codes of a stream.
    """
    self._open(codes_PQ, lanes, coder)
    lookback = self.config.expander.lookback
    # Lanes that are done stand behind their last segments.
    around_BU = lanes.at_B[:, None] + np.arange(-lookback, 1)
    around_BU = np.clip(around_BU, 0, len(codes_PQ) - 1)
    first_table, x_BD, lanes.cache, spelling = self._step(
      lanes.fed_B,
      lanes.offset_B,
      lanes.at_B.astype(np.int32),
      lanes.active_B,
      codes_PQ[around_BU].reshape(len(around_BU), -1),
      np.maximum(lookback - lanes.at_B, 0).astype(np.int32),
      lanes.cache,
      lanes.ends and lanes.ends.prior,
      lanes.stream and lanes.stream.remembered,
    )
    (active_N,) = np.nonzero(lanes.active_B)
    at_N, offset_N = lanes.at_B[active_N], lanes.offset_B[active_N]

    def table_of(stage: int, ids_B: np.ndarray) -> Array:
      return self._digit(stage, x_BD, ids_B) if stage else first_table

    ids_B = code_digits(
      self.sizes,
      lanes.active_B,
      ids_PL[at_N, offset_N],
      table_of,
      coder,
    )
    is_end_N = offset_N == self.config.segmentation.max_length - 1
    is_asked_N = ~is_end_N
    if spelling is not None:
      is_end_N |= np.asarray(spelling.is_end)[active_N]
      is_asked_N &= ~np.asarray(spelling.is_given)[active_N]
    table_B2 = self._read(lanes, x_BD, ids_B)
    if is_asked_N.any():
      says_N = offset_N + 1 == length_P[at_N]
      is_end_N[is_asked_N] = coder.code(
        np.asarray(table_B2)[active_N[is_asked_N]],
        says_N[is_asked_N].astype(np.int32),
      )
    ids_PL[at_N, offset_N] = ids_B[active_N]
    length_P[at_N[is_end_N]] = offset_N[is_end_N] + 1
    # New arrays: a call may still read the old ones.
    lanes.fed_B, lanes.offset_B = ids_B.copy(), lanes.offset_B.copy()
    if self.config.expander.context == 'segment':
      lanes.fed_B[active_N[is_end_N]] = self._bos
    lanes.offset_B[active_N] = np.where(is_end_N, 0, offset_N + 1)
    lanes.at_B[active_N] += is_end_N
    lanes.active_B = lanes.active_B & (lanes.at_B < lanes.stop_B)

  def _open(
    self, codes_PQ: np.ndarray, lanes: '_Lanes', coder: RangeCoder
  ) -> None:
    """Codes the codes of a stream whose segments open."""
    opens_B = lanes.active_B & (lanes.offset_B == 0)
    if lanes.stream is not None and opens_B.any():
      at_N = lanes.at_B[opens_B]
      prior = None if lanes.ends is None else lanes.ends.prior
      lanes.stream, codes_PQ[at_N, 0] = self._top_lm.code(
        lanes.stream, opens_B, prior, codes_PQ[at_N, 0], coder
      )

  def _read(self, lanes: '_Lanes', x_BD: Array, ids_B: np.ndarray) -> Array:
    """Reads ids of active lanes; returns frequencies of ends, [B, 2] int32."""
    read = ids_B, lanes.offset_B, lanes.active_B
    if lanes.stream is not None:
      lanes.stream = self._top_lm.read(lanes.stream, *read)
    if lanes.ends is None:
      return self._ends(x_BD, ids_B)
    lanes.ends, table_B2 = self._ask_rule(lanes.ends, *read)
    return table_B2

  @functools.partial(jax.jit, donate_argnames='cache')
  def _step(
    self,
    fed_B: Array,
    offset_B: Array,
    at_B: Array,
    active_B: Array,
    codes_BU: Array,
    lowest_B: Array,
    cache: Cache,
    prior: Prior | None,
    remembered: list[CodeKeyValues] | None,
  ) -> tuple[Array, Array, Cache, Spelling | None]:
    """Predicts the next id of each lane; `_Lanes` describes most arguments.

    Args:
      fed_B: Last id, or BOS.
      offset_B: Position of the next id in its segment.
      at_B: Its segment.
      active_B: Lanes that have a next id.
      codes_BU: Codes that it attends to, those of its own segment last, [B, U]
        int32.
      lowest_B: First segment of these that exists, 0 to `lookback`, [B] int32.
      cache: KV cache, whose buffers are reused.
      prior: Prediction of the id by the entropy model, [B]; None without rule.
      remembered: Codes of a stream, in place of `codes_BU`.

    Returns:
      Frequencies of the first digit, [B, K] int32; the states that ids are
      predicted from, [B, D]; the new cache; and what the codes alone say.
    """
    level, codebooks = self._bound()
    quantizer = level.compressor.quantizer
    if remembered is None:
      remembered = level.expander.remember(quantizer.lookup(codes_BU))
    if not level.expander.has_prior:
      prior = None
    own_B = jnp.full_like(lowest_B, self.config.expander.lookback)
    is_apart = self.config.expander.context == 'segment'
    x_BD, cache = level.expander.step(
      fed_B,
      offset_B,
      at_B if is_apart else jnp.zeros_like(fed_B),
      cache,
      active_B,
      StepCodes(remembered, own_B[:, None], lowest_B[:, None]),
      codebooks,
      prior,
    )
    base_BV = None if prior is None else prior.logits
    predicted = level.expander.vocabulary.predict(
      x_BD, None, codebooks, base_BV
    )
    spelling = flat_spelling(
      quantizer.spell(codes_BU[:, -1:]),
      jnp.zeros_like(offset_B)[:, None],
      offset_B[:, None],
    )
    # Special ids, such as EOS, are never coded.
    logits_BK = predicted.told(spelling).logits[0][:, : self.sizes[0]]
    return logit_frequencies(logits_BK), x_BD, cache, spelling

  @functools.partial(jax.jit, static_argnames='stage')
  def _digit(self, stage: int, x_BD: Array, ids_B: Array) -> Array:
    """Returns frequencies of a digit after the first, [B, K] int32.

    `x_BD` are states from `_step`, `ids_B` ids whose earlier digits are known.
    """
    level, codebooks = self._bound()
    predicted = level.expander.vocabulary.predict(x_BD, ids_B, codebooks)
    return logit_frequencies(predicted.logits[stage])

  @jax.jit
  def _ends(self, x_BD: Array, ids_B: Array) -> Array:
    """Returns frequencies that segments go on and end after ids, [B, 2] int32.

    `x_BD` are states from `_step`.
    """
    level, codebooks = self._bound()
    log_odds_B = level.expander.end_logits(x_BD, ids_B, codebooks)
    logits_B2 = jnp.stack([jnp.zeros_like(log_odds_B), log_odds_B], axis=-1)
    return logit_frequencies(logits_B2)

  @functools.partial(jax.jit, static_argnames='num_lanes')
  def _start_rule(self, num_lanes: int) -> ends.EntropyEnds:
    """Returns the state of the rule before the first ids of lanes."""
    level, _ = self._bound()
    # One more than ids: BOS.
    return ends.start(level, num_lanes, self.row_ids + 1)

  @functools.partial(jax.jit, donate_argnames='state')
  def _ask_rule(
    self,
    state: ends.EntropyEnds,
    ids_B: Array,
    offset_B: Array,
    active_B: Array,
  ) -> tuple[ends.EntropyEnds, Array]:
    """Reads ids, and predicts whether they end their segments.

    Args:
      state: State before the ids; its buffers are reused.
      ids_B: The ids, [B] int32.
      offset_B: Their positions in their segments, [B] int32.
      active_B: Lanes that have an id, [B] bool.

    Returns:
      The state, and frequencies that segments go on and end, [B, 2] int32.
    """
    level, _ = self._bound()
    # As coded: the rule may have divided otherwise.
    segmenter = dataclasses.replace(state.segmenter, length_B=offset_B + 1)
    state, opens_B = ends.after(
      level,
      dataclasses.replace(state, segmenter=segmenter),
      ids_B,
      ids_B,
      jnp.zeros_like(ids_B),
      active_B,
    )
    end_B = jnp.where(opens_B, (1 << PRECISION_BITS) - _SURPRISE, _SURPRISE)
    return state, jnp.stack([(1 << PRECISION_BITS) - end_B, end_B], axis=-1)

  @property
  def _top_lm(self) -> StreamTopLM:
    return StreamTopLM(self.variables, self.model)

  @property
  def _bos(self) -> int:
    return math.prod(self.sizes) + Special.BOS

  def _bound(self) -> tuple[Abstractinator, Codebooks | None]:
    """Returns the bound level, and the codebooks of the one below."""
    pyramid = self.model.bind(self.variables)
    codebooks = codebooks_below(pyramid, self.number)
    return pyramid.levels[self.number], codebooks


@dataclasses.dataclass
class _Lanes:
  """Position of each of B lanes in its segments.

  Attributes:
    at_B: Segment of the next id, [B] int.
    stop_B: The segment after the last one of the lane, [B] int.
    active_B: Whether the lane has a next id, [B] bool.
    offset_B: Position of the next id in its segment, [B] int32.
    fed_B: The id before it, or BOS, [B] int32.
    cache: KV cache of the expander.
    ends: State of the rule, if it predicts the ends.
    stream: State of the top LM, if codes are a stream.
  """

  at_B: np.ndarray
  stop_B: np.ndarray
  active_B: np.ndarray
  offset_B: np.ndarray
  fed_B: np.ndarray
  cache: Cache
  ends: ends.EntropyEnds | None
  stream: StreamState | None

  def narrow(self, width: int) -> None:
    """Keeps some lanes, the active ones among them."""
    if width < len(self.active_B):
      kept_B = np.argsort(~self.active_B, kind='stable')[:width]
      kept = jax.tree.map(lambda x_BX: x_BX[kept_B], vars(self))
      vars(self).update(kept)
