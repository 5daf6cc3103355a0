"""Metrics and examples on held-out rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

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
from abstractinator.objective import metrics
from abstractinator.objective.losses import prefixes
from abstractinator.objective.objectives import Objective
from abstractinator.runs.sharding import batch_sharding, replicated, shard_batch
from abstractinator.training.step import eval_step
from abstractinator.types import NUM_BYTES, Batch, Mean, PyTree

_DECODED_BATCHES = 8
_EXAMPLE_ROWS = 4
_BITS = 'expander_bits_per_byte'


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What there is to say of held-out rows.

  Attributes:
    summary: See `metrics.summarize`; where there are codes, with
      `free_running_byte_accuracy` and, after the prefix of each level,
      `expander_bits_per_byte_shuffled_codes`, given those of other segments,
      and `..._true_codes`, of the same rows.
    histograms: See `metrics.histograms` and, where there are codes,
      `Distributions`.
    examples: The first rows as Markdown, see `examples`; None without codes.
    picture: And as a picture; likewise.
  """

  summary: dict[str, float]
  histograms: dict[str, Histogram]
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
    total = first = None
    distributions = Distributions(self._model.config.levels)
    for number, rows in enumerate(self._batches(max_batches)):
      batch = shard_batch(rows, self._mesh)
      part = self._score(variables, batch)
      if number < self._num_decoded:
        given, decoded = self._decode(variables, batch)
        part |= given | _given_true_codes(part, given)
        if first is None:
          first = jax.device_get(decoded)
        distributions.add(jax.device_get(decoded.levels))
      total = _merge_present(total, jax.device_get(part))
    histograms = {
      name: Histogram(counts)
      for name, counts in metrics.histograms(total).items()
    }
    examples = picture = None
    if first is not None:
      histograms |= distributions.histograms()
      levels = self._model.config.levels
      queries = tuple(level.pooling.num_queries for level in levels)
      examples = markdown(first, _EXAMPLE_ROWS)
      picture = draw(first, queries, _EXAMPLE_ROWS)
    return Evaluation(metrics.summarize(total), histograms, examples, picture)


def decode_step(
  variables: PyTree, batch: Batch, *, model: AbstractinatorPyramid
) -> tuple[metrics.Metrics, ExampleRows]:
  """Encodes a batch, decodes it from its top codes alone, and shuffles them.

  Args:
    variables: `params` and the collections.
    batch: Rows.
    model: All levels.

  Returns:
    The free-running accuracy and the bits given shuffled codes, see
    `Evaluation`; and what was encoded and decoded.
  """
  output, sums = model.apply(
    variables, batch, ('shuffled',), method=with_other_memories
  )
  accuracy, decoded = decode_output(variables, output, batch, model=model)
  is_byte_BS = (batch.document_BS >= 0) & (batch.ids_BS < NUM_BYTES)
  num_bytes = jnp.sum(is_byte_BS, dtype=jnp.float32)
  given = {'free_running_byte_accuracy': accuracy} | {
    f'{prefix}{_BITS}_shuffled_codes': Mean(
      jnp.sum(sums[f'{prefix}expander_bits_with_shuffled_codes']), num_bytes
    )
    for prefix in prefixes(len(output.levels))
  }
  levels = tuple(coded_level(level.compressed) for level in output.levels)
  return given, ExampleRows(batch.ids_BS, levels, decoded)


def _given_true_codes(
  scored: metrics.Metrics, given: metrics.Metrics
) -> metrics.Metrics:
  """Bits of a batch to compare those given shuffled codes with."""
  end = '_shuffled_codes'
  names = [x.removesuffix(end) for x in given if x.endswith(end)]
  return {f'{name}_true_codes': scored[name] for name in names}


def _merge_present(
  total: metrics.Metrics | None, part: metrics.Metrics
) -> metrics.Metrics:
  """Merges metrics of which later batches may have fewer."""
  if total is None:
    return part
  merged = metrics.merge({name: total[name] for name in part}, part)
  return total | merged
