"""A trained level, for use on bytes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator import codes as codes_lib
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.codes import Codes
from abstractinator.config import RunConfig
from abstractinator.evaluation.reconstruction import (
  free_running_counts,
  top_slots,
)
from abstractinator.modules.pyramid_output import DecodedRows
from abstractinator.training import checkpoint
from abstractinator.training.model import make_model
from abstractinator.training.state import abstract_state
from abstractinator.types import Array, Batch, PyTree, Segments

# Ids of the largest batch; bounds memory whatever the length of a text.
_BATCH_IDS = 8192


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """What came back of a text from its codes alone.

  Attributes:
    text: The decoded bytes.
    byte_accuracy: Bytes that free-running decoding got right, compared within
      each segment; see `evaluation.reconstruction`.
    teacher_forced_byte_accuracy: Bytes predicted right from their code and the
      true bytes before them.
    num_segments: How many segments there were.
    bytes_per_segment: Bytes of the text over `num_segments`.
    exact: Whether `text` is the original.
  """

  text: bytes
  byte_accuracy: float
  teacher_forced_byte_accuracy: float
  num_segments: int
  bytes_per_segment: float
  exact: bool


def load(workdir: str, step: int | None = None) -> 'TrainedLevel':
  """Opens the level that a run has trained.

  Args:
    workdir: The directory of the run.
    step: Which checkpoint, the latest by default.

  Returns:
    The level, on the default device.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or it is one of
      an entropy model alone.
  """
  config = RunConfig.from_dict(checkpoint.read_config(workdir, step))
  if config.objective != 'all':
    got = f'objective: got {config.objective!r}'
    raise ValueError(f"{workdir}: {got}, allowed: 'all', which has codes")
  model = make_model(config, jax.default_backend())
  state = abstract_state(model, config.data.sequence_length)
  fields = {'params': state.params, 'collections': state.collections}
  fields = checkpoint.restore_variables(workdir, fields, step)
  variables = {'params': fields['params'], **fields['collections']}
  return TrainedLevel(config, variables)


class TrainedLevel:
  """Turns bytes into segments and codes, and codes into bytes.

  A text is any bytes, at least one; as in training EOS comes after its last
  byte, in a segment like any other id. It is cut into rows of
  `data.sequence_length` ids, each encoded as a document of its own.

  Attributes:
    config: Of the run.
  """

  def __init__(self, config: RunConfig, variables: PyTree):
    """Compiles nothing yet.

    Args:
      config: Of the run.
      variables: `params` and the collections.
    """
    self.config = config
    self._model = make_model(config, jax.default_backend())
    self._variables = variables

  def segment(self, data: bytes) -> list[bytes]:
    """Divides a text as the rule of the first level says.

    Args:
      data: The text.

    Returns:
      Its segments, none empty; joined they are `data`.

    Raises:
      ValueError: If there are no bytes.
    """
    segments, *_ = self._in_batches(_compress, *self._rows(data))
    # A segment of EOS alone starts behind the text.
    starts = np.flatnonzero(segments.is_start_BS.reshape(-1)[: len(data)])
    return [
      data[start:stop]
      for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)
    ]

  def encode(self, data: bytes) -> Codes:
    """Turns a text into codes, `pooling.num_queries` a segment of the top.

    Args:
      data: The text.

    Returns:
      Its codes.

    Raises:
      ValueError: If there are no bytes, or with `ends='entropy'` if slots ran
        short: decoding divides as if they never did.
    """
    segments, count_B, codes_BU = self._in_batches(_compress, *self._rows(data))
    self._require_division_of_decoding(segments)
    return codes_lib.from_slots(codes_BU, count_B, self._num_slots)

  def decode(self, codes: Codes) -> bytes:
    """Turns codes into a text, greedily; see `Abstractinator.decode`.

    A segment ends where the level says so, at EOS at the latest, which adds no
    byte. EOS in the wrong place cuts its own segment short, not the text. A
    wrong byte spoils its own segment, and those after it only as far as they
    see it: not at all where segments decode all at once.

    Args:
      codes: As from `encode`.

    Returns:
      The text. No codes, no bytes.

    Raises:
      ValueError: If a code is not in the codebook, or the counts do not fit.
    """
    if not len(codes.count_B):
      return b''
    return _text(self._decode(codes))

  def reconstruct(self, data: bytes) -> Reconstruction:
    """Encodes a text, decodes it from its codes alone, and compares.

    Args:
      data: The text.

    Returns:
      What came back, and how much of it is right; errors as of `encode`.
    """
    ids_BS, document_BS = self._rows(data)
    segments, count_B, codes_BU, predicted_BS, top_BS = self._in_batches(
      _predict, ids_BS, document_BS
    )
    self._require_division_of_decoding(segments)
    codes = codes_lib.from_slots(codes_BU, count_B, self._num_slots)
    num_segments = int(segments.count_B.sum())
    decoded = self._decode(codes)
    num_right, num_total = jax.jit(free_running_counts)(
      decoded.ids_BPL,
      decoded.length_BP,
      decoded.rows.origin_BP,
      ids_BS,
      top_BS,
      np.arange(self._num_slots) < count_B[:, None],
    )
    is_right_BS = (predicted_BS == ids_BS) & (ids_BS < NUM_BYTES)
    text = _text(decoded)
    return Reconstruction(
      text=text,
      byte_accuracy=float(num_right) / float(num_total),
      teacher_forced_byte_accuracy=float(np.sum(is_right_BS)) / len(data),
      num_segments=num_segments,
      bytes_per_segment=len(data) / num_segments,
      exact=text == data,
    )

  def _rows(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    return codes_lib.rows(data, self.config.data.sequence_length)

  def _require_division_of_decoding(self, segments: Segments) -> None:
    """Refuses segments that `EntropyEnds` would not find again."""
    # Of the first level: above it, a head says the ends.
    level = self.config.model.levels[0]
    num_rows = int(segments.is_capacity_bound_BS.any(axis=1).sum())
    if level.expander.ends == 'entropy' and num_rows:
      length = level.segmentation.capacity_length
      raise ValueError(
        f'model.levels[0].segmentation.capacity_length: got {length}, with'
        f' which {num_rows} rows of the text ran short of slots, so that'
        " decoding with ends='entropy' would divide them otherwise; allowed:"
        ' fewer ids a slot (1 is enough for every text), or texts of fewer'
        ' segments'
      )

  def _decode(self, codes: Codes) -> DecodedRows:
    level = self.config.model.levels[-1]
    codes_BU, is_valid_BP = codes_lib.to_slots(
      codes,
      level.quantizer.num_codes,
      self._num_slots,
      level.pooling.num_queries,
    )
    decode = functools.partial(
      _decode, sequence_length=self.config.data.sequence_length
    )
    return self._in_batches(decode, codes_BU, is_valid_BP)

  @property
  def _num_slots(self) -> int:
    """Of a row of the top level."""
    model = self.config.model
    *_, size = model.sequence_lengths(self.config.data.sequence_length)
    return model.levels[-1].segmentation.num_slots(size)

  def _in_batches(self, function: Callable[..., Any], *rows: np.ndarray) -> Any:
    """Calls a function on rows; few sizes of batches, so few compilations."""
    size = self.config.data.sequence_length
    largest = 1 << max((_BATCH_IDS // size).bit_length() - 1, 0)
    outputs = []
    for start in range(0, len(rows[0]), largest):
      part = [x[start : start + largest] for x in rows]
      count = len(part[0])
      missing = (1 << (count - 1).bit_length()) - count
      padded = [np.pad(x, ((0, missing), (0, 0)), mode='edge') for x in part]
      output = jax.device_get(function(self._model, self._variables, *padded))
      outputs.append(jax.tree.map(lambda x, n=count: x[:n], output))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


@functools.partial(jax.jit, static_argnums=0)
def _compress(model, variables, ids_BS, document_BS):
  output = model.apply(
    variables, _batch(ids_BS, document_BS), method='compress_all'
  )
  return _codes(output)


@functools.partial(jax.jit, static_argnums=0)
def _predict(model, variables, ids_BS, document_BS):
  output = model.apply(variables, _batch(ids_BS, document_BS))
  predicted_BS = output.levels[0].expanded.best_BS
  return *_codes(output), predicted_BS, top_slots(output)


def _text(decoded: DecodedRows) -> bytes:
  return codes_lib.text(
    decoded.ids_BPL, decoded.length_BP, decoded.rows.is_valid_BP
  )


def _codes(output):
  """Segments of the first level, how many the top level has, and its codes."""
  top = output.levels[-1].compressed
  segments = output.levels[0].compressed.segments
  return segments, top.segments.count_B, top.quantized.codes_BP


@functools.partial(jax.jit, static_argnums=0, static_argnames='sequence_length')
def _decode(model, variables, codes_BU, is_valid_BP, *, sequence_length):
  # A row is one document: its segments may look back to the first.
  lowest_BP = jnp.zeros(is_valid_BP.shape, jnp.int32)
  return model.apply(
    variables,
    codes_BU,
    is_valid_BP,
    lowest_BP,
    sequence_length=sequence_length,
    method='decode_all',
  )


def _batch(ids_BS: Array, document_BS: Array) -> Batch:
  # Only training asks which row is which.
  row_B = jnp.zeros((ids_BS.shape[0],), jnp.int32)
  return Batch(ids_BS=ids_BS, document_BS=document_BS, row_B=row_B)
