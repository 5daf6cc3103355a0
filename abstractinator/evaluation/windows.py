"""Documents as rows of context windows, so that every id is scored once.

A document that is longer than a row is read through windows of up to S ids. The
first ids of a window are context: the model reads them, but they were scored in
an earlier window. The first window of a document has no context; each later one
has up to S - stride ids of context, so that it scores up to `stride` ids. With
a stride of S the windows lie side by side without context. A passage that
begins with ids that are never scored has, in its last window, as much context
as fits the row.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import numpy as np

from abstractinator import types
from abstractinator.data.documents import Documents
from abstractinator.data.packing import empty_row
from abstractinator.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class Passage:
  """Ids to score, with or without context before them.

  Attributes:
    ids: The ids, [n] int32.
    counted_from: Position of the first id that is scored; the ids before it are
      context only.
  """

  ids: np.ndarray
  counted_from: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ContextWindow:
  """A part of a passage that the model reads at once.

  Attributes:
    passage: Number of the passage, counted from 0.
    ids: The ids, [n] int32 with n from 1 to S.
    num_context: Number of ids at the beginning that are context and not scored,
      less than n.
  """

  passage: int
  ids: np.ndarray
  num_context: int


@dataclasses.dataclass(frozen=True)
class WindowBatch:
  """Rows of windows; to the model each window is a document of its row.

  Attributes:
    batch: Rows as numpy arrays; the last ones may be padding, with the row
      number -1.
    is_counted_BS: True for the ids that are scored, [B, S] bool.
    windows: Windows of each row that is not padding, in order.
  """

  batch: Batch
  is_counted_BS: np.ndarray
  windows: tuple[tuple[ContextWindow, ...], ...]


@dataclasses.dataclass(frozen=True)
class DocumentPassages:
  """Whole documents as passages, each with EOS at its end.

  Documents are read one at a time, again in each iteration.

  Attributes:
    documents: The documents.
    change: Function of the number and the bytes of a document that returns the
      bytes to use; None for the bytes as they are.
  """

  documents: Documents
  change: Callable[[int, bytes], bytes] | None = None

  def __iter__(self) -> Iterator[Passage]:
    for index, document in enumerate(self.documents):
      text = document.read_bytes()
      if self.change is not None:
        text = self.change(index, text)
      yield Passage(types.bytes_to_ids(text))


def windows_of(
  passages: Iterable[Passage], sequence_length: int, stride: int
) -> Iterator[ContextWindow]:
  """Cuts passages into windows.

  Args:
    passages: The passages.
    sequence_length: Most ids of a window, S.
    stride: Most ids that a window after the first one scores, 1 to S.

  Yields:
    The windows in order; together they score every id from `counted_from` on
    once.
  """
  for number, passage in enumerate(passages):
    begin, size = passage.counted_from, len(passage.ids)
    while begin < size:
      start = max(0, begin - (sequence_length - stride))
      stop = min(start + sequence_length, size)
      if passage.counted_from:
        start = max(0, stop - sequence_length)
      yield ContextWindow(number, passage.ids[start:stop], begin - start)
      begin = stop


def rows_of(
  windows: Iterable[ContextWindow], sequence_length: int, max_documents: int
) -> Iterator[tuple[ContextWindow, ...]]:
  """Puts windows into rows, in order, as many as fit.

  The windows that share a row do not depend on how rows are batched.

  Args:
    windows: Windows of at most S ids.
    sequence_length: Number of ids in a row, S.
    max_documents: Most windows of a row, see `ModelConfig.max_documents`.

  Yields:
    The windows of each row.
  """
  row: list[ContextWindow] = []
  size = 0
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
  rows: Iterable[tuple[ContextWindow, ...]],
  sequence_length: int,
  batch_size: int,
) -> Iterator[WindowBatch]:
  """Puts rows into batches of one shape.

  Args:
    rows: Windows of each row, from `rows_of`.
    sequence_length: Number of ids in a row, S.
    batch_size: Number of rows in a batch, B; the last batch is filled up with
      rows of padding.

  Yields:
    The batches in order.
  """
  rows = iter(rows)
  first = 0
  while chosen := list(itertools.islice(rows, batch_size)):
    yield _batch(chosen, sequence_length, batch_size, first)
    first += batch_size


def _batch(
  rows: list[tuple[ContextWindow, ...]],
  sequence_length: int,
  batch_size: int,
  first: int,
) -> WindowBatch:
  """Returns a batch of rows that are numbered from `first`."""
  ids_BS, document_BS, row_B = (
    np.stack([column] * batch_size)
    for column in empty_row(sequence_length).values()
  )
  is_counted_BS = np.zeros((batch_size, sequence_length), bool)
  for row, windows in enumerate(rows):
    row_B[row] = first + row
    at = 0
    for number, window in enumerate(windows):
      stop = at + len(window.ids)
      ids_BS[row, at:stop] = window.ids
      document_BS[row, at:stop] = number
      is_counted_BS[row, at + window.num_context : stop] = True
      at = stop
  columns = cast(tuple[Array, Array, Array], (ids_BS, document_BS, row_B))
  return WindowBatch(Batch(*columns), is_counted_BS, tuple(rows))
