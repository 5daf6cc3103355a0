"""Arrays of ids in the format of `.npy` files."""

import functools
import io
import math
import os
from typing import Literal, NamedTuple

import numpy as np

from abstractinator.data.documents import Document, one_line
from abstractinator.data.globs import version

_KEPT_FILES = 64
# A header of version 1 or 2 as long as numpy accepts it, and what precedes it.
_HEADER_BYTES = 10_012


class Layout(NamedTuple):
  """Form of an array of integers in a file.

  Attributes:
    shape: Sizes of its axes.
    dtype: Type of its elements, integers.
    order: Order of its elements, 'C' or 'F'.
    offset: Position of the first element.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  order: Literal['C', 'F']
  offset: int


def read_layout(head: bytes, size: int) -> Layout:
  """Reads the header of an array of integers.

  Args:
    head: The first bytes of the file, `_HEADER_BYTES` or all.
    size: Bytes of the whole file, which must be those of header and elements.

  Raises:
    ValueError: If it is no such array.
  """
  file = io.BytesIO(head[:_HEADER_BYTES])
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  try:
    shape, is_fortran, dtype = readers[np.lib.format.read_magic(file)](file)
  # A header is parsed as Python, with errors of any kind.
  except Exception as error:
    reason = one_line(error)
  else:
    reason = ''
  if reason:
    raise ValueError(f'has a wrong header: {reason}')
  if dtype.kind not in 'iu':
    raise ValueError(f'has {len(shape)} axes of {dtype}')
  found = size - file.tell()
  if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != found:
    raise ValueError(f'has {found} bytes of elements for an array of {shape}')
  shape = tuple(map(int, shape))
  return Layout(shape, dtype, 'F' if is_fortran else 'C', file.tell())


def array_documents(path: str, name: str, vocab_size: int) -> list[Document]:
  """Returns the documents of a `.npy` file of ids; none if it is empty.

  Args:
    path: Path of the file, which holds integers: along one axis they are one
      document, along two axes each row is one.
    name: Name of the file; a row of several is called `name:row`.
    vocab_size: Number of ids; each is from 0 to `vocab_size - 1`.

  Raises:
    ValueError: If the file holds anything else.
    OSError: If the file cannot be read.
  """
  array = _map(path, version(path))
  if not array.size:
    return []
  # The array is mapped, not loaded: it may be larger than memory.
  low, high = int(array.min()), int(array.max())
  if low < 0 or high >= vocab_size:
    raise ValueError(
      f'{path}: has ids from {low} to {high}, allowed: 0 to {vocab_size - 1}'
      f' of data.vocab_size ({vocab_size})'
    )
  at, length = (array.shape,), array.shape[-1]
  if array.ndim == 1:
    return [Document(name, length, path, _load_ids, at=at, is_bytes=False)]
  return [
    Document(f'{name}:{i}', length, path, _load_ids, i, at, is_bytes=False)
    for i in range(len(array))
  ]


def _load_ids(document: Document, start: int, stop: int) -> np.ndarray:
  (shape,) = document.at
  # A file that has shrunk is mapped anew: a process is killed that reads what
  # is no longer there.
  array = _map(document.path, version(document.path))
  if array.shape != shape:
    raise ValueError(
      f'{document.place}: has changed: got {array.shape}, allowed: {shape} as'
      ' when the run began'
    )
  ids = array if document.number is None else array[document.number]
  return np.asarray(ids[start:stop], np.int32)


@functools.lru_cache(_KEPT_FILES)
def _map(path: str, _: tuple[int, ...]) -> np.ndarray:
  """Maps a version of a file; an array without elements is not mapped."""
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEADER_BYTES)
  try:
    layout = read_layout(head, size)
    if len(layout.shape) not in (1, 2):
      raise ValueError(f'has {len(layout.shape)} axes of {layout.dtype}')
  except ValueError as error:
    raise ValueError(
      f'{path}: {error}, allowed: a .npy file of integers along 1 or 2 axes'
    ) from None
  if 0 in layout.shape:
    return np.zeros(layout.shape, layout.dtype)
  return np.memmap(
    path, layout.dtype, 'r', layout.offset, layout.shape, layout.order
  )
