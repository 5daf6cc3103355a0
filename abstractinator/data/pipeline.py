"""Batches: an endless shuffled stream to train on, one pass to validate on.

A process takes every `shard_count`-th row of a global batch, so that global
batches, and positions in them, are the same for any number of processes.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Self

import grain
import numpy as np

from abstractinator.config import DataConfig
from abstractinator.data.documents import Documents
from abstractinator.data.mixture import MixedRows, parse_mixture
from abstractinator.data.packed_codes import PackedCodes
from abstractinator.data.packing import PackedRows
from abstractinator.data.sources import find_documents, split, standard_library
from abstractinator.types import Batch

Rows = PackedRows | MixedRows | PackedCodes


def open_data(config: DataConfig, *, max_documents: int) -> tuple[Rows, Rows]:
  """Finds the documents of a run and packs them.

  Args:
    config: What to read. An empty `train` is the standard library; an empty
      `validation` is a fraction of `train`, of each part of a mixture.
    max_documents: How many documents a row may touch, if they are packed.

  Returns:
    Rows to train on and rows to validate on.

  Raises:
    ValueError: If files are missing, cannot be read or split, or are to be
      trained on and held out.
  """
  mixture = parse_mixture(config.train)
  weights = [weight for weight, _ in mixture]
  train = [
    find_documents(globs, config.vocab_size) if globs else standard_library()
    for _, globs in mixture
  ]
  if config.validation:
    validation = [find_documents(config.validation, config.vocab_size)]
  else:
    pairs = [split(part, config.validation_fraction) for part in train]
    train, validation = (list(side) for side in zip(*pairs, strict=True))
  # A split goes by names, and a document may have one in each part of a
  # mixture.
  require_apart(train, Documents.concatenate(validation), config)

  def pack(documents: Documents) -> PackedRows:
    return PackedRows(
      documents,
      sequence_length=config.sequence_length,
      max_documents=max_documents if config.packing else 1,
      vocab_size=config.vocab_size,
    )

  # What is held out is read once, in no proportion.
  held_out = pack(Documents.concatenate(validation))
  parts = [pack(part) for part in train]
  if len(parts) == 1:
    return parts[0], held_out
  return MixedRows(parts, weights), held_out


def require_apart(
  train: Sequence[Documents], validation: Documents, config: DataConfig
) -> None:
  """Refuses documents that are on both sides.

  Args:
    train: To train on, each part of a mixture.
    validation: To validate on.
    config: Where they come from.

  Raises:
    ValueError: If there are some.
  """
  held_out = validation.places()
  both = sorted(set().union(*(held_out & part.places() for part in train)))
  if both and not config.validation:
    raise ValueError(
      f'data.train: {len(both)} documents held out of a part of the mixture'
      f' are trained on in another part, such as {both[0]}, allowed: parts'
      ' without common documents, or a data.validation of its own'
    )
  if both:
    raise ValueError(
      f'data.validation: {len(both)} of its {validation.num_documents}'
      f' documents are in data.train as well, such as {both[0]}, allowed: other'
      ' files, or an empty data.validation and a data.validation_fraction'
    )


def steps_per_epoch(rows: Rows, batch_size: int) -> int:
  """How many batches it takes to have seen every row."""
  return -(-len(rows) // batch_size)


class TrainIterator:
  """Endless batches in an order that is shuffled anew in each epoch.

  Of a mixture each part is shuffled anew whenever it is used up. Any batch can
  be computed from the number of its first row, which is the whole state.
  """

  def __init__(
    self,
    rows: Rows,
    *,
    seed: int,
    batch_size: int,
    shard_index: int,
    shard_count: int,
    read_threads: int,
    prefetch_batches: int,
  ):
    """Starts before the first batch.

    Args:
      rows: What to read.
      seed: Determines the order.
      batch_size: Rows of a global batch.
      shard_index: Which part of each batch to read, 0 to shard_count - 1.
      shard_count: Into how many parts a batch is divided.
      read_threads: How many batches are read at once; 0 reads in `__next__`.
      prefetch_batches: How many batches are kept ready by the threads.

    Raises:
      ValueError: If there is no row or batches cannot be divided.
    """
    local_size = _local_size(rows, batch_size, shard_index, shard_count)
    # Grain orders the numbers of rows only and a batch is read as a whole: half
    # the overhead of passing rows through it. Repeated before it is batched: no
    # row is dropped, and a data set may be smaller than a batch.
    dataset = _order(rows, seed)[shard_index::shard_count].batch(
      local_size,
      drop_remainder=True,
      batch_fn=functools.partial(_read_batch, rows),
    )
    options = grain.ReadOptions(
      num_threads=read_threads, prefetch_buffer_size=prefetch_batches
    )
    self._iterator = iter(dataset.to_iter_dataset(options))
    self._batch_size = batch_size

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> Batch:
    """Returns this shard's rows of the next batch, as numpy arrays."""
    return next(self._iterator)

  def get_state(self) -> dict[str, int]:
    """Returns the position: how many rows all shards together have taken."""
    next_batch = self._iterator.get_state()['next_index']
    return {'next_row': next_batch * self._batch_size}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a position, which may stem from another number of shards.

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


def _order(rows: Rows, seed: int) -> grain.MapDataset:
  """Numbers of rows, without end."""
  if not isinstance(rows, MixedRows):
    return grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
  parts = [
    grain.MapDataset.range(end - len(part), end)
    # Else parts of one length would take the same order.
    .seed(seed + number)
    .shuffle()
    .repeat()
    for number, (part, end) in enumerate(
      zip(rows.parts, rows.ends, strict=True)
    )
  ]
  return grain.MapDataset.mix(parts, rows.weights)


def validation_batches(
  rows: Rows,
  *,
  batch_size: int,
  seed: int,
  shard_index: int,
  shard_count: int,
  max_batches: int | None = None,
) -> Iterator[Batch]:
  """Reads each row once, in an order that depends on the seed only.

  The order is shuffled, so that the first `max_batches` are a fair sample. The
  last batch is filled up with rows of padding, numbered -1; so all batches
  have one shape, and all shards as many batches.

  Args:
    rows: What to read.
    batch_size: Rows of a global batch.
    seed: Determines the order.
    shard_index: Which part of each batch to read, 0 to shard_count - 1.
    shard_count: Into how many parts a batch is divided.
    max_batches: Where to stop early; None reads all rows.

  Returns:
    An iterator over this shard's rows of each batch, as numpy arrays.

  Raises:
    ValueError: If there is no row or batches cannot be divided.
  """
  _local_size(rows, batch_size, shard_index, shard_count)
  order = np.random.default_rng(seed).permutation(len(rows))
  order = np.pad(order, (0, -len(rows) % batch_size), constant_values=-1)
  batches = order.reshape(-1, batch_size)[:max_batches]
  return (
    _read_batch(rows, indices)
    for indices in batches[:, shard_index::shard_count]
  )


def _local_size(
  rows: Rows, batch_size: int, shard_index: int, shard_count: int
) -> int:
  """Rows of a shard's part of a batch, checked."""
  if not len(rows):
    raise ValueError('data: has no rows, allowed: at least 1')
  if not 0 <= shard_index < shard_count:
    raise ValueError(
      f'shard_index: got {shard_index}, allowed: 0 to {shard_count - 1}'
    )
  if batch_size < 1 or batch_size % shard_count:
    raise ValueError(
      f'data.batch_size: got {batch_size}, allowed: a multiple of the'
      f' {shard_count} processes that read data'
    )
  return batch_size // shard_count


def _read_batch(rows: Rows, indices: Sequence[int]) -> Batch:
  """Reads rows and stacks them; index -1 is a row of padding."""
  padding = rows.empty_row()
  read = [rows[index] if index >= 0 else padding for index in indices]
  return Batch(
    ids_BS=np.stack([row['ids'] for row in read]),
    document_BS=np.stack([row['document'] for row in read]),
    row_B=np.stack([row['row'] for row in read]),
  )
