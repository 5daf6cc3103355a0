"""A run's functions, compiled once, for whatever is measured of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from abstractinator.config import ModelConfig, RunConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.evaluation import coded_rows, likelihood
from abstractinator.evaluation.coded_rows import CodedLevel, CodedRows
from abstractinator.evaluation.windows import (
  Passage,
  WindowBatch,
  batches_of,
  rows_of,
  windows_of,
)
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.load import read_trained
from abstractinator.runs.sharding import batch_sharding, make_mesh, replicated
from abstractinator.types import Array, Batch, PyTree

# Ids of a batch where its size is not given.
_BATCH_IDS = 8192


def open_run(
  workdir: str,
  step: int | None = None,
  *,
  batch_size: int | None = None,
  stride: int | None = None,
) -> 'Evaluator':
  """An evaluator of a checkpoint.

  Args:
    workdir: Directory of the run.
    step: Which checkpoint, the latest by default.
    batch_size: See `Evaluator`.
    stride: Likewise.

  Returns:
    The evaluator.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or a number is
      out of its range.
  """
  return Evaluator(
    *read_trained(workdir, step), batch_size=batch_size, stride=stride
  )


@dataclasses.dataclass(frozen=True)
class ScoredBatch:
  """What a batch of windows costs; see `likelihood`.

  Attributes:
    windows: Of each row.
    sums: Sums of each row from `likelihood`, [B] float32 each.
    codes_BU: [B, U] int32, top codes; none of an entropy model.
    is_code_BU: [B, U] bool, those that are there.
    is_paid_BU: [B, U] bool, those that are paid for.
  """

  windows: tuple[tuple, ...]
  sums: ByLevel[np.ndarray]
  codes_BU: np.ndarray
  is_code_BU: np.ndarray
  is_paid_BU: np.ndarray


class Evaluator:
  """Scores passages and encodes them, over all devices at hand.

  What is measured does not depend on batches or devices: rows do not see each
  other, and sums are taken row by row.

  Attributes:
    config: Of the run. Where the entropy model says the ends of segments, slots
      are so many that they never run short: else nobody who decodes could find
      the same ends.
    stride: Ids that a window after the first counts; see `windows`.
    has_codes: Whether the run is more than an entropy model.
  """

  def __init__(
    self,
    config: RunConfig,
    variables: PyTree,
    *,
    batch_size: int | None = None,
    stride: int | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Compiles nothing yet.

    Args:
      config: Of the run.
      variables: `params` and the collections.
      batch_size: Rows of a batch, rounded up to a multiple of the devices; as
        many as make 8192 ids by default.
      stride: Half of `data.sequence_length` by default.
      devices: All of this process by default.

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
      config, model=_never_short_of_slots(config.model)
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
    self._score = self._jit(
      functools.partial(
        _score_pyramid if self.has_codes else _score_entropy_model,
        model=self.model,
      )
    )
    self._code = {
      decode: self._jit(
        functools.partial(coded_rows.code_rows, model=self.model, decode=decode)
      )
      for decode in (False, True)
    }
    self._levels = self._jit(
      functools.partial(coded_rows.code_levels, model=self.model)
    )

  def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, out_shardings=replicated(self._mesh))

  def score(
    self, passages: Iterable[Passage], *, alone: bool = False
  ) -> Iterator[ScoredBatch]:
    """Scores every id that counts, once.

    Args:
      passages: Of any length.
      alone: Whether each window has a row of its own, so that the sums of a
        row are those of a window.

    Returns:
      Batches in order.
    """
    batches = self._batches(passages, self.stride, 1 if alone else None)
    for windows, scored in self._run(
      lambda b: self._score(self.variables, b.batch, b.is_counted_BS), batches
    ):
      yield ScoredBatch(windows.windows, *scored)

  def code(
    self, passages: Iterable[Passage], *, decode: bool
  ) -> Iterator[tuple[WindowBatch, CodedRows]]:
    """Encodes passages in windows side by side, each id in one of them.

    Args:
      passages: Of any length.
      decode: Whether to decode them from their codes alone, too.

    Returns:
      Batches in order, on the host.
    """
    batches = self._batches(passages, self.config.data.sequence_length)
    return self._run(
      lambda b: self._code[decode](self.variables, b.batch), batches
    )

  def levels(
    self, passages: Iterable[Passage]
  ) -> Iterator[tuple[WindowBatch, tuple[CodedLevel, ...]]]:
    """Encodes passages as `code` does, each window in a row of its own."""
    batches = self._batches(passages, self.config.data.sequence_length, 1)
    return self._run(lambda b: self._levels(self.variables, b.batch), batches)

  def levels_of_long(self, ids_N: np.ndarray) -> tuple[CodedLevel, ...]:
    """Encodes a document of any length as one row, none of it divided.

    Args:
      ids_N: [N] int32; what was compiled serves the same length again.

    Returns:
      The levels of a batch of one, on the host.
    """
    ids_BS = np.asarray(ids_N, np.int32)[None]
    batch = Batch(ids_BS, np.zeros_like(ids_BS), np.zeros(1, np.int32))
    with jax.set_mesh(self._mesh):
      return jax.device_get(self._levels(self.variables, batch))

  def _batches(self, passages, stride, max_documents=None):
    size = self.config.data.sequence_length
    if max_documents is None:
      max_documents = self.config.model.max_documents(size)
    rows = rows_of(windows_of(passages, size, stride), size, max_documents)
    return batches_of(rows, size, self._batch_size)

  def _run(self, function, batches):
    """Runs a function a batch ahead of what is fetched of it."""
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


def _never_short_of_slots(config: ModelConfig) -> ModelConfig:
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
) -> tuple[likelihood.RowSums, Array, Array, Array]:
  output = model.apply(variables, batch)
  sums, is_paid_BU = likelihood.pyramid_bits(output, is_counted_BS)
  codes = output.top_codes
  return sums, codes.codes_BP, codes.document_BP >= 0, is_paid_BU


def _score_entropy_model(
  variables: PyTree,
  batch: Batch,
  is_counted_BS: Array,
  *,
  model: AbstractinatorPyramid,
) -> tuple[likelihood.RowSums, Array, Array, Array]:
  output = model.apply(variables, batch, method='predict_bytes')
  sums = likelihood.entropy_model_bits(
    output.nats_BS, output.logits_BSV, batch, is_counted_BS
  )
  none_BU = batch.ids_BS[:, :0]
  return sums, none_BU, none_BU > 0, none_BU > 0
