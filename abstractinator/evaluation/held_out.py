"""Metrics and examples on held-out rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from abstractinator.config import LossConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.evaluation.coded_rows import (
  coded_level,
  with_other_memories,
)
from abstractinator.evaluation.distributions import Distributions, Histogram
from abstractinator.evaluation.examples import ExampleRows, draw, markdown
from abstractinator.evaluation.reconstruction import decode_output
from abstractinator.model.pyramid import PyramidOutput
from abstractinator.objective import losses, metrics
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
  """What there is to say of held-out rows.

  Attributes:
    summary: Metrics of `eval_step`, summarized. With codes also, for each
      level, `expander_bits_per_byte_shuffled_codes`, given the codes of other
      segments, and `..._true_codes`, of the same rows; and of the whole
      `free_running_byte_accuracy`.
    histograms: Histograms of `metrics.histograms`, and with codes those of
      `Distributions`.
    examples: The first rows as Markdown; None without codes.
    picture: The first rows as a picture, [height, width, 3] uint8; None without
      codes.
  """

  summary: Summary
  histograms: ByLevel[Histogram]
  examples: str | None
  picture: np.ndarray | None


class HeldOut:
  """Evaluates variables on batches; compiles each function once."""

  def __init__(
    self,
    model: AbstractinatorPyramid,
    weights: LossConfig,
    objective: Objective,
    mesh: Mesh,
    variable_shardings: PyTree,
    batches: Callable[[int | None], Iterable[Batch]],
  ):
    """Prepares, compiling nothing yet.

    Args:
      model: All levels.
      weights: Of the loss terms.
      objective: What is trained.
      mesh: Where batches go.
      variable_shardings: Of the variables to come.
      batches: This process's rows of the first so many held-out batches, all
        of them for None.
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
    self._decode = jit(functools.partial(decode_step, model=model))
    # Other ids than bytes are no text to be shown.
    is_decoded = objective.has_codes and not objective.reads_codes
    is_decoded &= model.num_ids == NUM_BYTES
    self._num_decoded = _DECODED_BATCHES if is_decoded else 0

  def evaluate(self, variables: PyTree, max_batches: int | None) -> Evaluation:
    """Averages metrics over held-out batches.

    Args:
      variables: `params` and the collections.
      max_batches: How many batches; None for all.

    Returns:
      What was found; what is decoded, of the first 8 batches.
    """
    total: Metrics | None = None
    # Only the first batches are decoded.
    decoded: Metrics | None = None
    first: ExampleRows | None = None
    distributions = Distributions(self._model.config.levels)
    for number, rows in enumerate(self._batches(max_batches)):
      batch = shard_batch(rows, self._mesh)
      scored = self._score(variables, batch)
      total = metrics.merge(total, jax.device_get(scored))
      if number < self._num_decoded:
        part, shown = self._decode(variables, batch)
        part = jax.device_get(part | _true_codes(scored))
        decoded = metrics.merge(decoded, part)
        if first is None:
          first = jax.device_get(shown)
        distributions.add(jax.device_get(shown.levels))
    found = (total or ByLevel()) | (decoded or ByLevel())
    histograms = metrics.histograms(found).apply(
      lambda counts: {name: Histogram(x) for name, x in counts.items()}
    )
    examples = picture = None
    if first is not None:
      histograms |= distributions.histograms()
      levels = self._model.config.levels
      queries = tuple(level.pooling.num_queries for level in levels)
      examples = markdown(first, _EXAMPLE_ROWS)
      picture = draw(first, queries, _EXAMPLE_ROWS)
    return Evaluation(metrics.summarize(found), histograms, examples, picture)


def decode_step(
  variables: PyTree, batch: Batch, *, model: AbstractinatorPyramid
) -> tuple[Metrics, ExampleRows]:
  """Encodes a batch, decodes it from its top codes alone, and shuffles them.

  Args:
    variables: `params` and the collections.
    batch: Rows.
    model: All levels.

  Returns:
    The free-running accuracy and the bits given shuffled codes, see
    `Evaluation`; and what was encoded and decoded.
  """
  output, sums = cast(
    tuple[PyramidOutput, tuple[dict[str, Array], ...]],
    model.apply(variables, batch, ('shuffled',), method=with_other_memories),
  )
  accuracy, decoded = decode_output(variables, output, batch, model=model)
  num_bytes = metrics.count(losses.is_byte(batch))
  given = ByLevel(
    tuple(
      {f'{_BITS}_shuffled_codes': Mean(jnp.sum(x['shuffled']), num_bytes)}
      for x in sums
    ),
    {'free_running_byte_accuracy': accuracy},
  )
  levels = tuple(coded_level(level.compressed) for level in output.levels)
  return given, ExampleRows(batch.ids_BS, levels, decoded)


def _true_codes(scored: Metrics) -> Metrics:
  """Returns the bits given true codes of a batch that is decoded."""
  return ByLevel(
    tuple({f'{_BITS}_true_codes': x[_BITS]} for x in scored.levels)
  )
