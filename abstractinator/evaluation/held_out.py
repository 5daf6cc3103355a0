"""Metrics and examples on held-out rows."""

import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from abstractinator import byte_vocab, metrics
from abstractinator.config import LossConfig
from abstractinator.evaluation.reconstruction import (
  free_running_counts,
  top_slots,
)
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.modules.pyramid_output import DecodedRows, PyramidOutput
from abstractinator.ops import segmentation
from abstractinator.training.objective import Objective
from abstractinator.training.sharding import (
  batch_sharding,
  replicated,
  shard_batch,
)
from abstractinator.training.step import eval_step
from abstractinator.types import Batch, Mean, PyTree, Segments

_DECODED_BATCHES = 8


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
    self._mesh = mesh
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
    self._num_decoded = _DECODED_BATCHES if objective.has_codes else 0

  def evaluate(
    self, variables: PyTree, max_batches: int | None
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Averages metrics over held-out batches.

    Args:
      variables: `params` and the collections.
      max_batches: How many batches; None for all.

    Returns:
      Those of `metrics.summarize`, where there are codes with
      `free_running_byte_accuracy` over the first 8 batches; and how often each
      code was used, see `metrics.histograms`.
    """
    total = None
    for number, rows in enumerate(self._batches(max_batches)):
      batch = shard_batch(rows, self._mesh)
      part = self._score(variables, batch)
      if number < self._num_decoded:
        part['free_running_byte_accuracy'] = self._decode(variables, batch)[0]
      total = _merge_present(total, jax.device_get(part))
    return metrics.summarize(total), metrics.histograms(total)

  def examples(self, variables: PyTree, num_rows: int) -> str:
    """Held-out rows with their segments and reconstructions, as Markdown.

    Args:
      variables: `params` and the collections.
      num_rows: How many rows to show.

    Returns:
      For each row its text with a bar between segments, and below it what the
      codes alone decode to, likewise divided.
    """
    rows = next(iter(self._batches(1)))
    batch = shard_batch(rows, self._mesh)
    _, segments, decoded = jax.device_get(self._decode(variables, batch))
    ids_BS = jax.device_get(batch.ids_BS)
    texts = []
    for row in range(min(num_rows, len(ids_BS))):
      real = segments.index_BS[row] >= 0
      cuts = np.flatnonzero(segments.is_start_BS[row])
      truth = np.split(ids_BS[row][real], cuts[1:])
      guess = [
        ids_L[:length]
        for ids_L, length in zip(
          decoded.ids_BPL[row], decoded.length_BP[row], strict=True
        )
        if length
      ]
      texts.append(f'text\n\n{_block(truth)}\n\nfrom codes\n\n{_block(guess)}')
    return '\n\n---\n\n'.join(texts)


def decode_step(
  variables: PyTree, batch: Batch, *, model: AbstractinatorPyramid
) -> tuple[Mean, Segments, DecodedRows]:
  """Encodes a batch and decodes it back from its top codes alone.

  Args:
    variables: `params` and the collections.
    batch: Rows.
    model: All levels.

  Returns:
    The free-running accuracy, the segments of the first level, and what was
    decoded.
  """
  output = model.apply(variables, batch, method='compress_all')
  accuracy, decoded = decode_output(variables, output, batch, model=model)
  return accuracy, output.levels[0].compressed.segments, decoded


def decode_output(
  variables: PyTree,
  output: PyramidOutput,
  batch: Batch,
  *,
  model: AbstractinatorPyramid,
) -> tuple[Mean, DecodedRows]:
  """Decodes what was encoded, see `decode_step`, without the segments."""
  top = output.levels[-1].compressed
  lowest_BP = segmentation.per_slot(
    segmentation.first_slots(top.segments, output.batches[-1].document_BS),
    top.segments,
    top.is_valid_BP.shape[1],
  )
  decoded = model.apply(
    variables,
    top.quantized.codes_BP,
    top.is_valid_BP,
    lowest_BP,
    sequence_length=batch.ids_BS.shape[1],
    method='decode_all',
  )
  num_right, num_total = free_running_counts(
    decoded.ids_BPL,
    decoded.length_BP,
    decoded.rows.origin_BP,
    batch.ids_BS,
    top_slots(output),
    top.is_valid_BP,
  )
  return Mean(num_right, num_total), decoded


def _merge_present(
  total: metrics.Metrics | None, part: metrics.Metrics
) -> metrics.Metrics:
  """Merges metrics of which later batches may have fewer."""
  if total is None:
    return part
  merged = metrics.merge({name: total[name] for name in part}, part)
  return total | merged


def _block(segments: list[np.ndarray]) -> str:
  """A Markdown code block, indented so that no text can end it."""
  texts = [
    byte_vocab.decode(ids).decode('utf-8', errors='replace') for ids in segments
  ]
  return '\n'.join(f'    {line}' for line in '|'.join(texts).splitlines())
