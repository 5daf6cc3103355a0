"""Files of codes: `.npz`, or `.parquet` with a row for each text."""

import io
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from abstractinator.codes import codes as codes_lib
from abstractinator.codes.codes import Codes
from abstractinator.data import arrays as arrays_lib
from abstractinator.data.documents import one_line
from abstractinator.data.extras import import_extra
from abstractinator.data.whole_files import write_whole

_NPZ = ('codes_N', 'count_B', 'num_rows_T', 'level', 'queries')
_PARQUET = ('codes', 'counts', 'level')


def write_codes(path: str, codes: Sequence[Codes]) -> None:
  """Writes codes to a file, whole or not at all; an old one is replaced.

  Args:
    path: Path of the file, which ends in .npz or .parquet.
    codes: Codes of each text, all of one level.

  Raises:
    ValueError: If the path ends otherwise, pyarrow is missing, levels differ,
      or there are no codes.
    OSError: If the file cannot be written.
  """
  write_whole(path, to_bytes(path, codes))


def read_codes(path: str) -> list[Codes]:
  """Returns the codes of each text in a file that `write_codes` wrote.

  Args:
    path: Path of the file, which ends in .npz or .parquet.

  Raises:
    ValueError: If the path ends otherwise, pyarrow is missing, or the file is
      not a file of codes.
    OSError: If the file cannot be read.
  """
  read = _from_parquet if require_kind(path) == '.parquet' else _from_npz
  with open(path, 'rb') as file:
    content = file.read()
  try:
    return read(content)
  # Another file, or a damaged one, makes the libraries raise errors of any
  # kind.
  except Exception as error:
    raise ValueError(
      f'{path}: is no file of codes, allowed: what `abstractinator encode`'
      f' wrote ({one_line(error)})'
    ) from error


def to_bytes(path: str, codes: Sequence[Codes]) -> bytes:
  """Returns the content of a file of codes; see `write_codes`."""
  kind = require_kind(path)
  if not codes:
    raise ValueError(f'{path}: got no codes, allowed: those of at least 1 text')
  joined = codes_lib.join(codes)
  file = io.BytesIO()
  if kind == '.parquet':
    import pyarrow
    from pyarrow import parquet

    lists = pyarrow.list_(pyarrow.int32())
    columns = [
      pyarrow.array([x.codes_N.astype(np.int32) for x in codes], lists),
      pyarrow.array([x.count_B.astype(np.int32) for x in codes], lists),
      pyarrow.array([x.level for x in codes], pyarrow.int32()),
    ]
    table = pyarrow.Table.from_arrays(columns, names=list(_PARQUET))
    parquet.write_table(table, file, write_page_checksum=True)
  else:
    total = max(int(joined.count_B.sum()), 1)
    arrays = (
      joined.codes_N,
      joined.count_B,
      [len(x.count_B) for x in codes],
      joined.level,
      len(joined.codes_N) // total,
    )
    columns = [np.asarray(x, np.int32) for x in arrays]
    named: dict[str, Any] = dict(zip(_NPZ, columns, strict=True))
    np.savez_compressed(file, **named)
  return file.getvalue()


def _from_npz(content: bytes) -> list[Codes]:
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    arrays = [_read_array(archive, f'{name}.npy') for name in _NPZ]
  codes_N, count_B, num_rows_T, level, queries = arrays
  if [x.ndim for x in arrays] != [1, 1, 1, 0, 0] or (num_rows_T < 0).any():
    raise ValueError('the arrays have wrong shapes')
  if not len(num_rows_T) or sum(num_rows_T.tolist()) != len(count_B):
    raise ValueError('the rows of the texts do not add up')
  codes = codes_lib.split(
    Codes(codes_N, count_B, int(level)), num_rows_T.tolist(), int(queries)
  )
  _require_queries(codes, int(queries))
  return codes


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads an array of integers as int32."""
  info = archive.getinfo(name)
  # Others may ask for memory before they have read anything.
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f'{name} is compressed by method {info.compress_type}')
  # The whole of it, so that its checksum is compared.
  content = archive.read(info)
  layout = arrays_lib.read_layout(content, len(content))
  array = np.frombuffer(content, layout.dtype, offset=layout.offset)
  return _as_int32(array).reshape(layout.shape, order=layout.order)


def _from_parquet(content: bytes) -> list[Codes]:
  from pyarrow import parquet, types

  file = parquet.ParquetFile(
    io.BytesIO(content), page_checksum_verification=True
  )
  table = file.read(columns=list(_PARQUET))
  columns = [table.column(name) for name in _PARQUET]
  for column in columns:
    kind = column.type
    if column is not columns[-1]:
      if not (types.is_list(kind) or types.is_large_list(kind)):
        raise ValueError(f'a column is of type {kind}')
      kind = kind.value_type
    # Others could be cut to integers.
    if not types.is_integer(kind):
      raise ValueError(f'a column is of type {column.type}')
  if not 0 < table.num_rows == file.metadata.num_rows:
    raise ValueError(f'has {table.num_rows} rows')
  codes = [
    Codes(
      _as_int32(np.array(codes, np.int64)),
      _as_int32(np.array(counts, np.int64)),
      level,
    )
    for codes, counts, level in zip(
      *(column.to_pylist() for column in columns), strict=True
    )
  ]
  joined = codes_lib.join(codes)
  num_segments = max(int(joined.count_B.sum(dtype=np.int64)), 1)
  _require_queries(codes, len(joined.codes_N) // num_segments)
  return codes


def _as_int32(array: np.ndarray) -> np.ndarray:
  """Returns integers as int32; raises ValueError if that changes them."""
  narrow = array.astype(np.int32)
  if (narrow != array).any():
    raise ValueError(f'{array.dtype} holds numbers beyond int32')
  return narrow


def _require_queries(codes: Sequence[Codes], queries: int) -> None:
  """Raises ValueError if segments have other numbers of codes than Q."""
  for text in codes:
    count = int(text.count_B.sum(dtype=np.int64))
    if (
      text.level < 0
      or (text.count_B < 1).any()
      or count > len(text.codes_N)
      or count * queries != len(text.codes_N)
    ):
      raise ValueError(f'{len(text.codes_N)} codes for {count} segments')


def require_kind(path: str) -> str:
  """Returns the ending of the name of a file of codes.

  Raises:
    ValueError: If it is neither .npz nor .parquet, or pyarrow is missing.
  """
  kind = os.path.splitext(path)[1]
  if kind == '.parquet':
    import_extra('pyarrow.parquet', 'parquet', path)
  elif kind != '.npz':
    raise ValueError(
      f'{path}: ends in {kind!r}, allowed: .npz or .parquet, for codes'
    )
  return kind
