"""Metrics and examples on held-out rows."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from abstractinator import byte_vocab, metrics
from abstractinator.config import LossConfig
from abstractinator.evaluation.reconstruction import free_running_counts
from abstractinator.modules.abstractinator import Abstractinator
from abstractinator.ops import segmentation
from abstractinator.training.sharding import (
  batch_sharding,
  replicated,
  shard_batch,
)
from abstractinator.training.step import eval_step
from abstractinator.types import Array, Batch, Mean, PyTree, Segments

_DECODED_BATCHES = 8


class HeldOut:
  """Evaluates variables on batches; compiles each function once."""

  def __init__(
    self,
    model: Abstractinator,
    weights: LossConfig,
    mesh: Mesh,
    variable_shardings: PyTree,
    batches: Callable[[int | None], Iterable[Batch]],
  ):
    """Prepares, compiling nothing yet.

    Args:
      model: The level.
      weights: Of the loss terms.
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
      functools.partial(eval_step, model=model, weights=weights)
    )
    self._decode = jit(functools.partial(decode_step, model=model))

  def evaluate(
    self, variables: PyTree, max_batches: int | None
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Averages metrics over held-out batches.

    Args:
      variables: `params` and the collections.
      max_batches: How many batches; None for all.

    Returns:
      Those of `metrics.summarize`, with `free_running_byte_accuracy` over the
      first 8 batches; and how often each code was used, see
      `metrics.histograms`.
    """
    total = None
    for number, rows in enumerate(self._batches(max_batches)):
      batch = shard_batch(rows, self._mesh)
      part = self._score(variables, batch)
      if number < _DECODED_BATCHES:
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
    _, segments, decoded_BPL, length_BP = jax.device_get(
      self._decode(variables, batch)
    )
    ids_BS = jax.device_get(batch.ids_BS)
    texts = []
    for row in range(min(num_rows, len(ids_BS))):
      count = segments.count_B[row]
      real = segments.index_BS[row] >= 0
      cuts = np.flatnonzero(segments.is_start_BS[row])
      truth = np.split(ids_BS[row][real], cuts[1:])
      guess = [decoded_BPL[row, p, : length_BP[row, p]] for p in range(count)]
      texts.append(f'text\n\n{_block(truth)}\n\nfrom codes\n\n{_block(guess)}')
    return '\n\n---\n\n'.join(texts)


def decode_step(
  variables: PyTree, batch: Batch, *, model: Abstractinator
) -> tuple[Mean, Segments, Array, Array]:
  """Encodes a batch and decodes it back from its codes alone.

  Args:
    variables: `params` and the collections.
    batch: Rows.
    model: The level.

  Returns:
    The free-running accuracy, the segments, their decoded ids [B, P, L] int32,
    and their decoded lengths [B, P] int32.
  """
  compressed = model.apply(variables, batch, method='compress')
  lowest_BP = segmentation.per_slot(
    segmentation.first_slots(compressed.segments, batch.document_BS),
    compressed.segments,
    compressed.is_valid_BP.shape[1],
  )
  decoded_BPL, length_BP = model.apply(
    variables,
    compressed.quantized.codes_BP,
    compressed.is_valid_BP,
    lowest_BP,
    sequence_length=batch.ids_BS.shape[1],
    method='decode',
  )
  num_right, num_total = free_running_counts(
    decoded_BPL,
    length_BP,
    batch.ids_BS,
    compressed.segments,
    compressed.is_valid_BP,
  )
  accuracy = Mean(num_right.astype(jnp.float32), num_total.astype(jnp.float32))
  return accuracy, compressed.segments, decoded_BPL, length_BP


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
