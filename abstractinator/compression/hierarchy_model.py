"""The levels of a run, for whoever writes codes and ids and who reads them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.byte_model import PRECISION_BITS
from abstractinator.compression.code_top_lm import CodeTopLM
from abstractinator.compression.code_unigram import CodeUnigram
from abstractinator.compression.hierarchy_level import HierarchyLevel
from abstractinator.compression.segment_coder import Segments
from abstractinator.config import RunConfig
from abstractinator.training.model import make_model
from abstractinator.training.objective import OBJECTIVES
from abstractinator.training.trained import fingerprint
from abstractinator.types import Batch, PyTree

_BATCH_IDS = 8192
# Ids of a row that is encoded, where every stack has a window.
_ROW_IDS = 4096
# Of a table, half of whose frequencies are left to be given by likelihood.
_MOST_CODES = 1 << (PRECISION_BITS - 1)


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
    self._sequence_length = size = config.data.sequence_length
    self.levels = [
      HierarchyLevel(self._variables, self._model, number, size_of_level)
      for number, size_of_level in enumerate(
        config.model.sequence_lengths(size)
      )
    ]
    self.stage_sizes = config.model.levels[-1].quantizer.stage_sizes
    self.fingerprint = bytes.fromhex(fingerprint(config, variables))[:16]
    self._row_ids = _ROW_IDS if _has_windows(config) else size

  def new_codes(self) -> CodeUnigram | CodeTopLM:
    """What predicts top codes: a discrete top LM if there is one."""
    top_lm = self._model.config.top_lm
    if top_lm is None or top_lm.mode != 'discrete':
      return CodeUnigram(self.stage_sizes)
    return CodeTopLM(self._model, self._variables, self._sequence_length)

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
  for number, level in enumerate(config.model.levels):
    largest = max(level.quantizer.stage_sizes)
    if largest > _MOST_CODES:
      return (
        f'model.levels[{number}].quantizer: got a codebook of {largest},'
        f' allowed: {_MOST_CODES} at most'
      )
  return None
