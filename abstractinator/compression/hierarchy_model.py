"""Compression under all levels of a run.

A block of a text is coded from the top down: its top codes, under a discrete
top LM or else a unigram that learns as it goes; then, level by level down to
the bytes, the ids of segments given their codes, and where segments end. Top
codes that are a stream (see `decoding.stream`) are coded with the ids of their
level.
"""

import copy
import functools
import itertools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.codes.codes import segment_lengths
from abstractinator.compression.coder import PRECISION_BITS, RangeCoder
from abstractinator.compression.coding_shapes import CodingShapes
from abstractinator.compression.container import HIERARCHY, TextLanes
from abstractinator.compression.segment_coder import SegmentCoder
from abstractinator.compression.top_codes import CodeTopLM, code_by_counts
from abstractinator.config import RunConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.evaluation import code_choice
from abstractinator.evaluation.coded_rows import code_levels
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.load import fingerprint
from abstractinator.types import Array, Batch, PyTree

# Every value of a digit has a frequency of at least 1; at least half of their
# sum is left to be given by likelihood.
_MOST_VALUES = 1 << (PRECISION_BITS - 1)


class HierarchyModel:
  """All levels of a run, and the predictor of their top codes.

  Attributes:
    kind: HIERARCHY.
    max_lanes: 1: segments, not the text, are divided into lanes.
    fingerprint: 16 bytes that tell one model from another.
    levels: Coders of the segments of each level, bottom first.
  """

  kind = HIERARCHY
  max_lanes = 1

  def __init__(
    self,
    config: RunConfig,
    variables: PyTree,
    shapes: CodingShapes | None = None,
    candidates: int = 1,
  ) -> None:
    """Reads a model; nothing is compiled yet.

    Args:
      config: Config of the run.
      variables: `params` and the collections of the whole model.
      shapes: Sizes of the coder's arrays; None for those of all files that
        `abstractinator compress` writes.
      candidates: Number of nearest codes of a top segment of which `encode`
        takes the cheapest; see `code_choice`. A decoder needs not know it.

    Raises:
      ValueError: If the run has no codes, or a setting is not supported.
    """
    reason = unsupported(config)
    if reason is None and candidates > 1:
      reason = code_choice.unsupported(config.model, candidates)
    if reason is not None:
      raise ValueError(f'{reason}, to compress under the hierarchy')
    self._model = make_model(config, jax.default_backend())
    self._variables = jax.device_put(variables)
    self._candidates = candidates
    self._shapes = shapes or CodingShapes()
    size = config.data.sequence_length
    self._row_ids = self._shapes.row_ids if _has_windows(config) else size
    self.levels = [
      SegmentCoder(
        self._variables,
        self._model,
        number,
        level_size,
        self._row_ids,
        self._shapes,
      )
      for number, level_size in enumerate(config.model.sequence_lengths(size))
    ]
    self._top_lm = self._make_top_lm(config)
    self.fingerprint = bytes.fromhex(fingerprint(config, variables))[:16]

  def _make_top_lm(self, config: RunConfig) -> CodeTopLM | None:
    top_lm = config.model.top_lm
    if top_lm is None or top_lm.mode != 'discrete' or config.model.streams:
      return None
    if top_lm.stack.window is None:
      lane_codes = config.model.num_top_codes(config.data.sequence_length)
    else:
      lane_codes = self._shapes.lane_windows * top_lm.stack.window
    return CodeTopLM(self._variables, self._model, lane_codes, self._shapes)

  def new_counts(self) -> CodeCounts:
    """Returns counts of top codes at the start of a text."""
    return CodeCounts(self._model.config.levels[-1].quantizer.stage_sizes)

  def code_top(
    self, codes_N: np.ndarray, counts: CodeCounts, coder: RangeCoder
  ) -> np.ndarray:
    """Codes top codes under the top LM, if there is one, else by their counts.

    `code_by_counts` has the arguments. A stream is not coded here.
    """
    if self._model.config.streams:
      return codes_N
    if self._top_lm is not None:
      return self._top_lm.code(codes_N, coder)
    most = self._shapes.max_table_codes
    return code_by_counts(codes_N, counts, most, coder)

  def block_coder(self, lanes: TextLanes) -> 'HierarchyBlockCoder':
    """Returns a coder of the blocks of a text, which is one lane."""
    return HierarchyBlockCoder(self)

  def encode(
    self, data: bytes
  ) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Divides a text into segments and computes their codes.

    A decoder needs none of this: it reads any division and any codes.

    Args:
      data: The text, at least one byte.

    Returns:
      Ids, [N] int32, and lengths of segments, [P] int, of each level, bottom
      first; and the top codes, [N] int32.
    """
    size = self._row_ids
    num_rows = max(self._shapes.batch_ids // size, 1)
    ids_N = np.frombuffer(data, np.uint8).astype(np.int32)
    missing, shape = -len(ids_N) % (size * num_rows), (-1, num_rows, size)
    ids = np.pad(ids_N, (0, missing)).reshape(shape)
    document = np.pad(np.zeros_like(ids_N), (0, missing), constant_values=-1)
    parts = [
      jax.device_get(
        _encode_rows(self._model, self._candidates, self._variables, *rows)
      )
      for rows in zip(ids, document.reshape(shape), strict=True)
    ]
    segments = []
    for index_BS, codes_BU, is_code_BU in jax.tree.map(
      lambda *x: np.concatenate(x), *parts
    ):
      segments.append((ids_N, segment_lengths(index_BS)))
      # Codes are the ids of the level above.
      ids_N = codes_BU[is_code_BU]
    return segments, ids_N


class HierarchyBlockCoder:
  """Coder of the blocks of one text, which are given to it in order."""

  def __init__(self, model: HierarchyModel) -> None:
    self._model = model
    self._counts = self._counts_before = model.new_counts()

  def code(self, bytes_N: np.ndarray, coder: RangeCoder | None) -> np.ndarray:
    """Codes the next block, as `ByteBlockCoder.code` does.

    The head of the coder has the number of top codes and, top first, the
    `lane_numbers` of each level. Raw blocks are no context.

    Raises:
      ValueError: If the payload of a decoder was not written by this method.
    """
    if coder is None:
      return bytes_N
    levels = self._model.levels[::-1]
    known: Sequence[tuple[np.ndarray, np.ndarray] | None] = [None] * len(levels)
    codes_N = np.zeros(0, np.int32)
    counts = [level.num_lane_numbers(len(bytes_N)) for level in levels]
    head = [0] * (1 + sum(counts))
    if not coder.is_decoder:
      segments, codes_N = self._model.encode(bytes_N.tobytes())
      known = segments = segments[::-1]
      head = [len(codes_N)]
      for level, (_, length_P) in zip(levels, segments, strict=True):
        head += level.lane_numbers(length_P)
    num_codes, *numbers = coder.head(head)
    ends = itertools.accumulate(counts)
    lanes = [numbers[i - n : i] for i, n in zip(ends, counts, strict=True)]
    # Each segment has at least one id and `queries` codes. That bounds the top
    # codes and the ids of each level.
    queries = [level.config.pooling.num_queries for level in levels]
    *most_ids, most_codes = itertools.accumulate(
      reversed(queries), operator.mul, initial=len(bytes_N)
    )
    if num_codes > most_codes or num_codes % queries[0]:
      raise ValueError(
        f'got {num_codes} codes, allowed: at most {most_codes}, a multiple of'
        f' {queries[0]}'
      )
    if coder.is_decoder:
      codes_N = np.zeros(num_codes, np.int32)
    self._counts_before = copy.deepcopy(self._counts)
    ids_N = self._model.code_top(codes_N, self._counts, coder)
    for level, of_level, lane_numbers, most in zip(
      levels, known, lanes, reversed(most_ids), strict=True
    ):
      ids_N = level.code(ids_N, of_level, lane_numbers, coder)
      if len(ids_N) > most:
        raise ValueError(f'got {len(ids_N)} ids, allowed: at most {most}')
    return ids_N.astype(np.uint8)

  def forget(self) -> None:
    """Forgets the codes of the last block, which is stored raw.

    A decoder never sees these codes.
    """
    self._counts = self._counts_before


def unsupported(config: RunConfig) -> str | None:
  """Returns which setting of a run forbids this compression, or None."""
  if not OBJECTIVES[config.objective].has_codes:
    return f"objective: got {config.objective!r}, allowed: 'all' or 'top_lm'"
  top_lm = config.model.top_lm
  if config.model.streams and top_lm is not None and top_lm.mode != 'discrete':
    return (
      f"model.top_lm.mode: got {top_lm.mode!r}, allowed: 'discrete' with"
      " expander.conditioning 'top_lm', top_lm.inputs 'segments' or top_lm.base"
      " 'entropy_model'"
    )
  for number, level in enumerate(config.model.levels):
    largest = max(level.quantizer.stage_sizes)
    if largest > _MOST_VALUES:
      return (
        f'model.levels[{number}].quantizer: got a codebook of {largest},'
        f' allowed: {_MOST_VALUES} at most'
      )
  return None


def _has_windows(config: RunConfig) -> bool:
  """Returns whether rows of the text may be longer than in training."""
  model, bottom = config.model, config.model.levels[0].expander
  stacks = [x for y in model.levels for x in (y.entropy_model, y.encoder)]
  if bottom.ends == 'entropy':
    # Rows are lanes of the expander, and maybe of the top LM.
    if bottom.context == 'full':
      return False
    if model.streams and model.top_lm is not None:
      stacks.append(model.top_lm.stack)
  return all(stack.window is not None for stack in stacks)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode_rows(
  model: AbstractinatorPyramid,
  candidates: int,
  variables: PyTree,
  ids_BS: Array,
  document_BS: Array,
) -> list[tuple[Array, Array, Array]]:
  """Returns `index_BS`, `codes_BU` and `is_code_BU` of each `CodedLevel`."""
  row_B = jnp.zeros(len(ids_BS), jnp.int32)
  batch = Batch(ids_BS=ids_BS, document_BS=document_BS, row_B=row_B)
  levels = code_levels(variables, batch, model=model, candidates=candidates)
  return [(x.index_BS, x.codes_BU, x.is_code_BU) for x in levels]
