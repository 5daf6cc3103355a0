"""Batches: an endless shuffled stream to train on, one pass to validate on.

A process takes every `shard_count`-th row of a global batch, so that global
batches, and positions in them, are the same for any number of processes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from abstractinator.config import DataConfig
from abstractinator.data.documents import Document, Documents
from abstractinator.data.globs import real_file
from abstractinator.data.packing import PackedRows, empty_row
from abstractinator.data.sources import (
  find_documents,
  parse_mixture,
  split,
  standard_library,
)
from abstractinator.types import Batch


def open_data(
  config: DataConfig, *, max_documents: int
) -> tuple[PackedRows, PackedRows]:
  """Finds the documents of a run and packs them.

  Args:
    config: The data of the run. An empty `train` is the standard library; an
      empty `validation` is a fraction of `train`, of each part of a mixture.
    max_documents: Maximum number of documents in a row, if they are packed.

  Returns:
    Rows to train on and rows to validate on.

  Raises:
    ValueError: If files are missing, cannot be read or split, or are both
      trained on and held out.
  """
  mixture = parse_mixture(config.train)
  train = [
    find_documents(globs, config.vocab_size) if globs else standard_library()
    for _, globs in mixture
  ]
  if config.validation:
    validation = [find_documents(config.validation, config.vocab_size)]
  else:
    pairs = [split(part, config.validation_fraction) for part in train]
    train, validation = (list(side) for side in zip(*pairs, strict=True))
  # Held-out documents are read once, so weights do not apply to them.
  held_out = Documents(itertools.chain(*validation))
  # A split goes by names, and a document may have one in each part of a
  # mixture.
  require_apart(train, held_out, config)

  pack = functools.partial(
    PackedRows,
    sequence_length=config.sequence_length,
    max_documents=max_documents if config.packing else 1,
    vocab_size=config.vocab_size,
  )
  return pack(train, weights=[weight for weight, _ in mixture]), pack(
    [held_out]
  )


def require_apart(
  train: Sequence[Documents], validation: Documents, config: DataConfig
) -> None:
  """Checks that no document is both trained on and held out.

  Args:
    train: Documents to train on, for each part of a mixture.
    validation: Documents to validate on.
    config: The data of the run, for the message.

  Raises:
    ValueError: If a document is in both.
  """
  # Several paths may lead to one file.
  file_of = functools.cache(real_file)
  trained = {(file_of(x.path), x.number) for x in itertools.chain(*train)}
  trained_files = {file for file, _ in trained}

  def is_trained(document: Document) -> bool:
    file = file_of(document.path)
    # One of the two may be the whole file, the other a part of it.
    if document.number is None:
      return file in trained_files
    return not trained.isdisjoint({(file, document.number), (file, None)})

  both = sorted(x.place for x in validation if is_trained(x))
  if both and not config.validation:
    raise ValueError(
      f'data.train: {len(both)} documents held out of a part of the mixture'
      f' are trained on in another part, such as {both[0]}, allowed: parts'
      ' without common documents, or a data.validation of its own'
    )
  if both:
    raise ValueError(
      f'data.validation: {len(both)} of its {len(validation)}'
      f' documents are in data.train as well, such as {both[0]}, allowed: other'
      ' files, or an empty data.validation and a data.validation_fraction'
    )


@dataclasses.dataclass(frozen=True)
class BatchOrder:
  """Order in which rows are read, and the part of each batch that is read.

  Attributes:
    seed: Seed of the order.
    batch_size: Number of rows in a global batch.
    shard_index: Part of each batch to read, 0 to shard_count - 1.
    shard_count: Number of parts into which a batch is divided, a divisor of
      `batch_size`.
  """

  seed: int
  batch_size: int
  shard_index: int = 0
  shard_count: int = 1


class TrainIterator(Iterator[Batch]):
  """Endless iterator over batches, whose order is shuffled anew each epoch.

  In a mixture each part is shuffled anew whenever it is used up. Any batch can
  be computed from the number of its first row, which is the whole state.
  """

  def __init__(
    self,
    rows: PackedRows,
    order: BatchOrder,
    *,
    read_threads: int,
    prefetch_batches: int,
  ):
    """Starts before the first batch.

    Args:
      rows: PackedRows to read.
      order: Order of the rows, and the part of each batch to read.
      read_threads: Number of batches read at once; 0 reads in `__next__`.
      prefetch_batches: Number of batches that the threads keep ready.
    """
    # Grain orders row numbers and a batch is read as a whole, which halves the
    # overhead of passing rows through it. The order repeats before it is cut
    # into batches: no row is dropped, and there may be fewer rows than a batch.
    numbers = _row_numbers(rows, order.seed)
    dataset = numbers[order.shard_index :: order.shard_count].batch(
      order.batch_size // order.shard_count,
      drop_remainder=True,
      batch_fn=functools.partial(_read_batch, rows),
    )
    options = grain.ReadOptions(
      num_threads=read_threads, prefetch_buffer_size=prefetch_batches
    )
    self._iterator = iter(dataset.to_iter_dataset(options))
    self._batch_size = order.batch_size

  def __next__(self) -> Batch:
    """Returns this shard's rows of the next batch, as numpy arrays."""
    return next(self._iterator)

  def get_state(self) -> dict[str, int]:
    """Returns the position, the number of rows that all shards have taken."""
    next_batch = self._iterator.get_state()['next_index']
    return {'next_row': next_batch * self._batch_size}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a position.

    Args:
      state: From `get_state`; the number of shards may have been another.

    Raises:
      ValueError: If no batch of this size begins there.
    """
    next_batch, rest = divmod(state['next_row'], self._batch_size)
    if rest:
      raise ValueError(
        f'data.batch_size: got {self._batch_size}, allowed: a divisor of the'
        f' {state["next_row"]} rows that are done'
      )
    self._iterator.set_state({'next_index': next_batch})


def _row_numbers(rows: PackedRows, seed: int) -> grain.MapDataset:
  """Returns row numbers in the order of training, without end."""
  parts = [
    grain.MapDataset.range(start, stop)
    # With one seed, parts of equal length would take the same order.
    .seed(seed + number)
    .shuffle()
    .repeat()
    for number, (start, stop) in enumerate(
      itertools.pairwise([0, *rows.row_ends])
    )
  ]
  return grain.MapDataset.mix(parts, rows.weights) if parts[1:] else parts[0]


def validation_batches(
  rows: PackedRows, order: BatchOrder, *, max_batches: int | None = None
) -> Iterator[Batch]:
  """Reads each row once, in an order that depends on the seed only.

  The order is shuffled, so that the first `max_batches` are a fair sample. The
  last batch is filled up with rows of padding, numbered -1, so that all batches
  have one shape and all shards have equally many batches.

  Args:
    rows: PackedRows to read.
    order: Order of the rows, and the part of each batch to read.
    max_batches: Maximum number of batches; None reads all rows.

  Returns:
    An iterator over this shard's rows of each batch, as numpy arrays.
  """
  numbers = np.random.default_rng(order.seed).permutation(len(rows))
  missing = -len(rows) % order.batch_size
  numbers = np.pad(numbers, (0, missing), constant_values=-1)
  batches = numbers.reshape(-1, order.batch_size)[:max_batches]
  return (
    _read_batch(rows, indices)
    for indices in batches[:, order.shard_index :: order.shard_count]
  )


def _read_batch(rows: PackedRows, indices: Sequence[int]) -> Batch:
  """Reads rows and stacks them; index -1 is a row of padding."""
  padding = empty_row(rows.sequence_length, rows.pad_id)
  read = [rows[index] if index >= 0 else padding for index in indices]

  def column(name: str) -> Any:
    # Any, since numpy arrays stand in for jax arrays until they are placed.
    return np.stack([row[name] for row in read])

  return Batch(column('ids'), column('document'), column('row'))
