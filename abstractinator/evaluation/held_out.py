"""Metrics of held-out rows while a run trains, and examples to look at."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from abstractinator.config import LossConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.evaluation.coded_rows import CodedRows, code_rows
from abstractinator.evaluation.examples import draw, markdown
from abstractinator.evaluation.level_statistics import (
  Histogram,
  SegmentHistograms,
)
from abstractinator.evaluation.reconstruction import free_running_counts
from abstractinator.objective import metrics
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.eval_step import eval_step
from abstractinator.objective.metrics import Metrics, Summary
from abstractinator.objective.objectives import Objective
from abstractinator.runs.sharding import batch_sharding, replicated, shard_batch
from abstractinator.types import NUM_BYTES, Array, Batch, Mean, PyTree

_DECODED_BATCHES = 8
_EXAMPLE_ROWS = 4
_BITS = 'expander_bits_per_byte'


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Metrics, histograms and examples of held-out rows.

  Attributes:
    summary: Metrics of `eval_step`, summarized. For a run with codes also, over
      the first batches, for each level `expander_bits_per_byte_shuffled_codes`,
      given the codes of other segments, and `..._true_codes`, of the same rows;
      and for the whole `free_running_byte_accuracy`.
    histograms: Histograms of `metrics.histograms`, and for a run with codes
      those of `SegmentHistograms`.
    examples: The first rows as Markdown; None for a run without codes.
    picture: The first rows as a picture, [height, width, 3] uint8; None for a
      run without codes.
  """

  summary: Summary
  histograms: ByLevel[Histogram]
  examples: str | None
  picture: np.ndarray | None


class HeldOut:
  """Evaluates variables on held-out batches; compiles each function once."""

  def __init__(
    self,
    model: AbstractinatorPyramid,
    weights: LossConfig,
    objective: Objective,
    mesh: Mesh,
    variable_shardings: PyTree,
    batches: Callable[[int | None], Iterable[Batch]],
  ):
    """Prepares the functions; each is compiled at its first use.

    Args:
      model: The pyramid.
      weights: Weights of the loss terms.
      objective: Objective of the run.
      mesh: Mesh of devices over which batches are spread.
      variable_shardings: Shardings of the variables.
      batches: Function that returns the rows of this process in the first
        held-out batches; it takes their number, None for all.
    """
    self._model, self._mesh = model, mesh
    self._batches = batches
    jit = functools.partial(
      jax.jit,
      in_shardings=(variable_shardings, batch_sharding(mesh)),
      out_shardings=replicated(mesh),
    )
    self._score = jit(
      functools.partial(
        eval_step, model=model, weights=weights, objective=objective
      )
    )
    self._decode = jit(
      functools.partial(
        code_rows, model=model, substitutes=('shuffled',), decode=True
      )
    )
    # Ids other than bytes are no text to show.
    is_decoded = objective.has_codes and not objective.reads_codes
    is_decoded &= model.num_ids == NUM_BYTES
    self._num_decoded = _DECODED_BATCHES if is_decoded else 0

  def evaluate(
    self,
    variables: PyTree,
    max_batches: int | None,
    after_batch: Callable[[int], None] = lambda done: None,
  ) -> Evaluation:
    """Averages metrics over held-out batches.

    Args:
      variables: Parameters and collections of the model.
      max_batches: Number of batches; None for all. The first 8 of them are
        also decoded.
      after_batch: Function that is called after each batch, with the number of
        batches done.

    Returns:
      The evaluation.
    """
    total: Metrics | None = None
    # Metrics of the decoded batches alone.
    decoded: Metrics | None = None
    first: CodedRows | None = None
    segments = SegmentHistograms(self._model.config.levels)
    for number, batch in enumerate(self._batches(max_batches)):
      placed = shard_batch(batch, self._mesh)
      scored = self._score(variables, placed)
      if number < self._num_decoded:
        rows = jax.device_get(self._decode(variables, placed))
        first = rows if first is None else first
        decoded = metrics.merge(decoded, _decoded_metrics(rows, scored))
        segments.add(rows.levels)
      total = metrics.merge(total, jax.device_get(scored))
      after_batch(number + 1)
    found = (total or ByLevel()) | (decoded or ByLevel())
    histograms = metrics.histograms(found).apply(
      lambda counts: {name: Histogram(x) for name, x in counts.items()}
    )
    examples = picture = None
    if first is not None:
      histograms |= segments.histograms()
      examples = markdown(first, _EXAMPLE_ROWS)
      picture = draw(first, _EXAMPLE_ROWS)
    return Evaluation(metrics.summarize(found), histograms, examples, picture)


def _decoded_metrics(rows: CodedRows, scored: Metrics) -> Metrics:
  """Returns metrics of a decoded batch, of which `scored` are `eval_step`'s."""
  assert rows.decoded is not None, 'the rows were not decoded'
  right_B, total_B = free_running_counts(
    rows.decoded, rows.ids_BS, rows.levels[-1].byte_slot_BS
  )
  num_bytes = np.sum(np.asarray(rows.ids_BS) < NUM_BYTES)
  levels = tuple(
    {
      f'{_BITS}_shuffled_codes': _mean(np.sum(bits['shuffled']), num_bytes),
      f'{_BITS}_true_codes': jax.device_get(of_level[_BITS]),
    }
    for bits, of_level in zip(rows.bits, scored.levels, strict=True)
  )
  accuracy = _mean(right_B.sum(), total_B.sum())
  return ByLevel(levels, {'free_running_byte_accuracy': accuracy})


def _mean(total: ArrayLike, count: ArrayLike) -> Mean:
  """Returns a mean of numbers on the host."""
  numbers = np.asarray(total, np.float32), np.asarray(count, np.float32)
  return Mean(*cast(tuple[Array, Array], numbers))
