"""Compiled functions of a run with which passages are scored and encoded."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.config import ModelConfig, RunConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.evaluation import code_choice, coded_rows, likelihood
from abstractinator.evaluation.coded_rows import CodedLevel, CodedRows
from abstractinator.evaluation.likelihood import RowSums
from abstractinator.evaluation.windows import (
  ContextWindow,
  Passage,
  WindowBatch,
  batches_of,
  rows_of,
  windows_of,
)
from abstractinator.model.pyramid import BytePredictions, PyramidOutput
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.load import read_trained
from abstractinator.runs.sharding import batch_sharding, make_mesh, replicated
from abstractinator.types import Array, Batch, PyTree

# Ids of a batch if its number of rows is not given.
_BATCH_IDS = 8192


def open_run(
  workdir: str, step: int | None = None, **options: Any
) -> 'Evaluator':
  """Returns an evaluator of a checkpoint.

  Args:
    workdir: Directory of the run.
    step: Step of the checkpoint; the latest one by default.
    **options: Further arguments of `Evaluator`.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or a number is
      out of its range.
  """
  return Evaluator(*read_trained(workdir, step), **options)


@dataclasses.dataclass(frozen=True)
class ScoredBatch:
  """Costs of a batch of windows; see `likelihood`.

  Attributes:
    windows: Windows of each row that is not padding.
    sums: Sums of each row by name, [B] float32.
    codes_BU: Top codes, [B, U] int32; none for an entropy model.
    is_code_BU: True for the codes of slots that hold a segment, [B, U] bool.
    is_paid_BU: True for the codes that cost bits, [B, U] bool.
  """

  windows: tuple[tuple[ContextWindow, ...], ...]
  sums: RowSums
  codes_BU: np.ndarray
  is_code_BU: np.ndarray
  is_paid_BU: np.ndarray


class Evaluator:
  """Functions that score and encode passages, on all local devices.

  Results depend neither on the size of batches nor on the number of devices:
  rows do not see each other, and sums are taken row by row.

  Attributes:
    config: Config of the run. Where the entropy model decides the ends of
      segments, rows have so many slots that they never run short: a decoder
      could not find the same ends otherwise.
    stride: Most ids that a window after the first one scores; see `windows`.
    has_codes: Whether the run has trained levels, not an entropy model alone.
    model: The pyramid.
    variables: Parameters and collections of the model, on all devices.
  """

  def __init__(
    self,
    config: RunConfig,
    variables: PyTree,
    *,
    batch_size: int | None = None,
    stride: int | None = None,
    candidates: int = 1,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Prepares the functions; each is compiled at its first use.

    Args:
      config: Config of the run.
      variables: Parameters and collections of its model.
      batch_size: Number of rows in a batch, rounded up to a multiple of the
        number of devices; by default, rows of 8192 ids in total.
      stride: Most ids that a window after the first one scores; by default,
        half of `data.sequence_length`.
      candidates: Number of nearest codes of which the cheapest is taken; see
        `code_choice`.
      devices: Devices to use; by default, all of this process.

    Raises:
      ValueError: If a number is out of its range.
    """
    size = config.data.sequence_length
    self.stride = max(size // 2, 1) if stride is None else stride
    if not 1 <= self.stride <= size:
      raise ValueError(
        f'stride: got {stride}, allowed: 1 to data.sequence_length ({size})'
      )
    if batch_size is None:
      batch_size = max(_BATCH_IDS // size, 1)
    if batch_size < 1:
      raise ValueError(f'batch_size: got {batch_size}, allowed: at least 1')
    self.config = dataclasses.replace(
      config, model=_with_enough_slots(config.model)
    )
    self.has_codes = OBJECTIVES[config.objective].has_codes
    devices = jax.local_devices() if devices is None else list(devices)
    self._batch_size = -(-batch_size // len(devices)) * len(devices)
    mesh = make_mesh(
      dataclasses.replace(config.mesh, data=-1, fsdp=1, tensor=1), devices
    )
    self._mesh, self._rows = mesh, batch_sharding(mesh)
    self.model = make_model(self.config, devices[0].platform)
    self.variables = jax.device_put(variables, replicated(mesh))
    self._score = self._jit(_score_entropy_model)
    if candidates > 1:
      reason = code_choice.unsupported(self.config.model, candidates)
      if reason is not None:
        raise ValueError(reason)
    if self.has_codes:
      self._score = self._jit(_score_pyramid, candidates=candidates)
    self._code = {
      decode: self._jit(
        coded_rows.code_rows,
        substitutes=coded_rows.SUBSTITUTES,
        decode=decode,
      )
      for decode in (False, True)
    }
    self._levels = self._jit(coded_rows.code_levels)

  def _jit(self, function: Callable[..., Any], **options: Any) -> Any:
    """Returns a compiled function of variables and rows."""
    return jax.jit(
      functools.partial(function, model=self.model, **options),
      out_shardings=replicated(self._mesh),
    )

  def score(
    self, passages: Iterable[Passage], *, alone: bool = False
  ) -> Iterator[ScoredBatch]:
    """Scores the ids of passages, each id once.

    Args:
      passages: Passages of any length.
      alone: Whether each window has a row of its own, so that the sums of a row
        are those of a window.

    Yields:
      The scored batches in order, on the host.
    """
    batches = self._batches(passages, self.stride, 1 if alone else None)
    for windows, scored in self._run(
      lambda b: self._score(self.variables, b.batch, b.is_counted_BS), batches
    ):
      yield ScoredBatch(windows.windows, *scored)

  def code(
    self, passages: Iterable[Passage], *, decode: bool
  ) -> Iterator[tuple[WindowBatch, CodedRows]]:
    """Encodes passages in windows that lie side by side.

    Args:
      passages: Passages of any length.
      decode: Whether to decode the windows from their top codes alone.

    Returns:
      Batches of windows in order, each with its coded rows, on the host.
    """
    batches = self._batches(passages, self.config.data.sequence_length)
    return self._run(
      lambda b: self._code[decode](self.variables, b.batch), batches
    )

  def levels(
    self, passages: Iterable[Passage]
  ) -> Iterator[tuple[WindowBatch, tuple[CodedLevel, ...]]]:
    """Encodes passages as `code` does, but each window in a row of its own."""
    batches = self._batches(passages, self.config.data.sequence_length, 1)
    return self._run(lambda b: self._levels(self.variables, b.batch), batches)

  def levels_of_long(self, ids_N: np.ndarray) -> tuple[CodedLevel, ...]:
    """Encodes a document of any length as one row.

    Args:
      ids_N: The document, [N] int; each length is compiled once.

    Returns:
      The levels of a batch of one row, on the host.
    """
    ids_BS = jnp.asarray(ids_N, jnp.int32)[None]
    batch = Batch(ids_BS, jnp.zeros_like(ids_BS), jnp.zeros(1, jnp.int32))
    with jax.set_mesh(self._mesh):
      return jax.device_get(self._levels(self.variables, batch))

  def _batches(
    self,
    passages: Iterable[Passage],
    stride: int,
    max_documents: int | None = None,
  ) -> Iterator[WindowBatch]:
    """Cuts passages into windows and batches them; see `windows`."""
    size = self.config.data.sequence_length
    if max_documents is None:
      max_documents = self.config.model.max_documents(size)
    rows = rows_of(windows_of(passages, size, stride), size, max_documents)
    return batches_of(rows, size, self._batch_size)

  def _run(
    self, function: Callable[[WindowBatch], Any], batches: Iterable[WindowBatch]
  ) -> Iterator[tuple[WindowBatch, Any]]:
    """Yields batches with results of a function that runs a batch ahead."""
    waiting = None
    for batch in batches:
      with jax.set_mesh(self._mesh):
        placed = dataclasses.replace(
          batch,
          batch=jax.device_put(batch.batch, self._rows),
          is_counted_BS=jax.device_put(batch.is_counted_BS, self._rows),
        )
        result = function(placed)
      if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])
      waiting = batch, result
    if waiting is not None:
      yield waiting[0], jax.device_get(waiting[1])


def _with_enough_slots(config: ModelConfig) -> ModelConfig:
  """Returns a config whose slots never run short if entropy ends segments."""
  level, *upper = config.levels
  if level.expander.ends != 'entropy':
    return config
  segmentation = dataclasses.replace(level.segmentation, capacity_length=1.0)
  level = dataclasses.replace(level, segmentation=segmentation)
  return dataclasses.replace(config, levels=(level, *upper))


def _score_pyramid(
  variables: PyTree,
  batch: Batch,
  is_counted_BS: Array,
  *,
  model: AbstractinatorPyramid,
  candidates: int,
) -> tuple[RowSums, Array, Array, Array]:
  """Computes the fields of a `ScoredBatch` for a run with codes."""

  def run(pyramid: AbstractinatorPyramid) -> tuple[PyramidOutput, Array | None]:
    if candidates == 1:
      return pyramid(batch), None
    codes, top_lm, nats_BU = code_choice.choose_codes(
      pyramid, batch, candidates, is_counted_BS
    )
    return pyramid.predict(codes, top_lm), nats_BU

  output, nats_BU = cast(
    tuple[PyramidOutput, Array | None], model.apply(variables, method=run)
  )
  sums, is_paid_BU = likelihood.pyramid_bits(output, is_counted_BS)
  if nats_BU is not None and code_choice.is_independent(model.config):
    bits_B = likelihood.row_bits(nats_BU, is_paid_BU)
    sums |= ByLevel(whole={'bits_back_bits': bits_B})
  codes = output.top_codes
  return sums, codes.codes_BP, codes.document_BP >= 0, is_paid_BU


def _score_entropy_model(
  variables: PyTree,
  batch: Batch,
  is_counted_BS: Array,
  *,
  model: AbstractinatorPyramid,
) -> tuple[RowSums, Array, Array, Array]:
  """Computes the fields of a `ScoredBatch` for a run of an entropy model."""
  output = model.apply(variables, batch, method='predict_bytes')
  predictions = cast(BytePredictions, output)
  sums = likelihood.entropy_model_bits(predictions, is_counted_BS)
  none_BU = batch.ids_BS[:, :0]
  return sums, none_BU, none_BU > 0, none_BU > 0
