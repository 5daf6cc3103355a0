"""Codes of texts in files: `.npz`, or `.parquet` with a row for each text."""

import io
import os
import zipfile
from collections.abc import Sequence

import numpy as np

from abstractinator import codes as codes_lib
from abstractinator.codes import Codes

_NPZ = ('codes_N', 'count_B', 'num_rows_T', 'level', 'queries')
_PARQUET = ('codes', 'counts', 'level')


def write_codes(path: str, codes: Sequence[Codes]) -> None:
  """Writes codes; what lies at `path` is replaced.

  Args:
    path: Ends in .npz or .parquet.
    codes: Of texts, all of one level.

  Raises:
    ValueError: If the path ends otherwise, pyarrow is missing, levels differ,
      or there are none.
    OSError: If nothing can be written there.
  """
  content = to_bytes(path, codes)
  with open(path, 'wb') as file:
    file.write(content)


def read_codes(path: str) -> list[Codes]:
  """Reads what `write_codes` wrote.

  Args:
    path: Ends in .npz or .parquet.

  Returns:
    The codes of each text.

  Raises:
    ValueError: If the path ends otherwise, pyarrow is missing, or the file is
      no such file.
    OSError: If it cannot be read.
  """
  kind = _kind(path)
  with open(path, 'rb') as file:
    content = file.read()
  if kind == '.parquet':
    return _from_parquet(path, content)
  return _from_npz(path, content)


def to_bytes(path: str, codes: Sequence[Codes]) -> bytes:
  """The content of a file of this name; see `write_codes`."""
  kind = _kind(path)
  if not codes:
    raise ValueError(f'{path}: got no codes, allowed: those of at least 1 text')
  joined = codes_lib.join(codes)
  file = io.BytesIO()
  if kind == '.parquet':
    pyarrow, parquet = _pyarrow(path)
    lists = pyarrow.list_(pyarrow.int32())
    columns = [
      pyarrow.array([x.codes_N.astype(np.int32) for x in codes], lists),
      pyarrow.array([x.count_B.astype(np.int32) for x in codes], lists),
      pyarrow.array([x.level for x in codes], pyarrow.int32()),
    ]
    table = pyarrow.Table.from_arrays(columns, names=list(_PARQUET))
    parquet.write_table(table, file)
  else:
    total = max(int(joined.count_B.sum()), 1)
    arrays = (
      joined.codes_N.astype(np.int32),
      joined.count_B.astype(np.int32),
      np.array([len(x.count_B) for x in codes], np.int32),
      np.int32(joined.level),
      np.int32(len(joined.codes_N) // total),
    )
    np.savez_compressed(file, **dict(zip(_NPZ, arrays, strict=True)))
  return file.getvalue()


def _from_npz(path: str, content: bytes) -> list[Codes]:
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      codes_N, count_B, num_rows_T, level, queries = (file[x] for x in _NPZ)
  except (
    *(ValueError, TypeError, KeyError, EOFError),
    zipfile.BadZipFile,
  ) as error:
    raise _no_codes(path) from error
  arrays = (codes_N, count_B, num_rows_T, level, queries)
  if (
    any(not np.issubdtype(x.dtype, np.integer) for x in arrays)
    or [x.ndim for x in arrays] != [1, 1, 1, 0, 0]
    or (num_rows_T < 0).any()
    or queries < 1
    or num_rows_T.sum() != len(count_B)
  ):
    raise _no_codes(path)
  joined = Codes(codes_N, count_B, int(level))
  parts = codes_lib.split(joined, num_rows_T.tolist(), int(queries))
  if sum(len(x.codes_N) for x in parts) != len(codes_N):
    raise _no_codes(path)
  return parts


def _from_parquet(path: str, content: bytes) -> list[Codes]:
  pyarrow, parquet = _pyarrow(path)
  try:
    table = parquet.read_table(io.BytesIO(content), columns=list(_PARQUET))
    columns = [table.column(name).to_pylist() for name in _PARQUET]
    return [
      Codes(np.array(codes, np.int32), np.array(counts, np.int32), int(level))
      for codes, counts, level in zip(*columns, strict=True)
    ]
  except (
    pyarrow.ArrowException,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
  ) as error:
    raise _no_codes(path) from error


def _pyarrow(path: str):
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ValueError(
      f'{path}: needs pyarrow, allowed: a name that ends in .npz, or'
      " pip install 'abstractinator[parquet]'"
    ) from error
  return pyarrow, pyarrow.parquet


def _kind(path: str) -> str:
  kind = os.path.splitext(path)[1]
  if kind not in ('.npz', '.parquet'):
    raise ValueError(
      f'{path}: ends in {kind!r}, allowed: .npz or .parquet, for codes'
    )
  return kind


def _no_codes(path: str) -> ValueError:
  return ValueError(
    f'{path}: is no file of codes, allowed: what `abstractinator encode` wrote'
  )
