"""Documents as rows of windows, so that every byte is counted exactly once.

A document that is longer than a row is read through windows. Each has up to
S - stride ids of context, which the model is given and which count for nothing,
and then ids that do; the first window of a document has no context, and more
that count. With a stride of S windows lie side by side. The last window of a
passage that begins with context has as much of it as the row holds.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from abstractinator import types
from abstractinator.data.documents import Documents
from abstractinator.data.packing import empty_row
from abstractinator.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
  """A part of a passage.

  Attributes:
    passage: Number of the passage.
    ids: [n] int32, 1 to S of them.
    num_context: How many of the first ones count for nothing, less than n.
  """

  passage: int
  ids: np.ndarray
  num_context: int


@dataclasses.dataclass(frozen=True)
class Passage:
  """Ids to score.

  Attributes:
    ids: [n] int32.
    counted_from: The first id that counts; those before it are context only.
  """

  ids: np.ndarray
  counted_from: int = 0


@dataclasses.dataclass(frozen=True)
class WindowBatch:
  """Rows of windows; a window is a document of its row to the model.

  Attributes:
    batch: numpy arrays; rows of padding, numbered -1, come last.
    is_counted_BS: [B, S] bool.
    windows: Those of each row, in order.
  """

  batch: Batch
  is_counted_BS: np.ndarray
  windows: tuple[tuple[Window, ...], ...]


class DocumentPassages:
  """Whole documents, each with its EOS, read one by one and as often as asked.

  Attributes:
    documents: What is read.
  """

  def __init__(self, documents: Documents):
    self.documents = documents

  def __iter__(self) -> Iterator[Passage]:
    for index in range(self.documents.num_documents):
      length = int(self.documents.lengths[index])
      yield Passage(types.bytes_to_ids(self.documents.read(index, 0, length)))


def windows_of(
  passages: Iterable[Passage], sequence_length: int, stride: int
) -> Iterator[Window]:
  """Cuts passages into windows.

  Args:
    passages: What to cut.
    sequence_length: S.
    stride: Ids that a window after the first counts, 1 to S.

  Returns:
    Windows in order; every id from `counted_from` on counts in one of them.

  Raises:
    ValueError: If the stride is out of its range.
  """
  if not 1 <= stride <= sequence_length:
    raise ValueError(
      f'stride: got {stride}, allowed: 1 to {sequence_length}, the ids of a row'
    )
  for number, passage in enumerate(passages):
    begin, size = passage.counted_from, len(passage.ids)
    while begin < size:
      start = max(0, begin - (sequence_length - stride))
      stop = min(start + sequence_length, size)
      if passage.counted_from:
        start = max(0, stop - sequence_length)
      yield Window(number, passage.ids[start:stop], begin - start)
      begin = stop


def rows_of(
  windows: Iterable[Window], sequence_length: int, max_documents: int
) -> Iterator[tuple[Window, ...]]:
  """Puts windows into rows, in order, as many as one holds.

  Which windows share a row does not depend on how rows are batched.

  Args:
    windows: At most S ids each.
    sequence_length: S.
    max_documents: Windows that a row may hold, see `ModelConfig`.

  Returns:
    The windows of each row.
  """
  row, size = [], 0
  for window in windows:
    is_full = size + len(window.ids) > sequence_length
    if row and (is_full or len(row) == max_documents):
      yield tuple(row)
      row, size = [], 0
    row.append(window)
    size += len(window.ids)
  if row:
    yield tuple(row)


def batches_of(
  rows: Iterable[tuple[Window, ...]], sequence_length: int, batch_size: int
) -> Iterator[WindowBatch]:
  """Puts rows into batches of one shape.

  Args:
    rows: From `rows_of`.
    sequence_length: S.
    batch_size: B; the last batch is filled up with padding.

  Returns:
    The batches.
  """
  rows = iter(rows)
  first = 0
  while chosen := list(itertools.islice(rows, batch_size)):
    yield _batch(chosen, sequence_length, batch_size, first)
    first += batch_size


def _batch(rows, sequence_length, batch_size, first) -> WindowBatch:
  padding = empty_row(sequence_length)
  ids_BS = np.tile(padding['ids'], (batch_size, 1))
  document_BS = np.tile(padding['document'], (batch_size, 1))
  is_counted_BS = np.zeros((batch_size, sequence_length), bool)
  row_B = np.full(batch_size, padding['row'])
  for row, windows in enumerate(rows):
    row_B[row] = first + row
    at = 0
    for number, window in enumerate(windows):
      stop = at + len(window.ids)
      ids_BS[row, at:stop] = window.ids
      document_BS[row, at:stop] = number
      is_counted_BS[row, at + window.num_context : stop] = True
      at = stop
  return WindowBatch(
    Batch(ids_BS=ids_BS, document_BS=document_BS, row_B=row_B),
    is_counted_BS,
    tuple(rows),
  )
