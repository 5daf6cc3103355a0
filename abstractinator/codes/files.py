"""Files of codes: `.npz`, or `.parquet` with a row for each text."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from abstractinator.codes import codes as codes_lib
from abstractinator.codes.codes import Codes
from abstractinator.data.records import import_extra
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
      ' wrote'
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
    parquet.write_table(table, file)
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
  with np.load(io.BytesIO(content), allow_pickle=False) as file:
    arrays = [file[name] for name in _NPZ]
  codes_N, count_B, num_rows_T, level, queries = arrays
  if (
    any(not np.issubdtype(x.dtype, np.integer) for x in arrays)
    or [x.ndim for x in arrays] != [1, 1, 1, 0, 0]
    or (num_rows_T < 0).any()
    or num_rows_T.sum() != len(count_B)
    or queries < 1
    or queries * count_B.sum() != len(codes_N)
  ):
    raise ValueError('the arrays do not fit each other')
  joined = Codes(codes_N, count_B, int(level))
  return codes_lib.split(joined, num_rows_T.tolist(), int(queries))


def _from_parquet(content: bytes) -> list[Codes]:
  from pyarrow import parquet

  table = parquet.read_table(io.BytesIO(content), columns=list(_PARQUET))
  columns = [table.column(name).to_pylist() for name in _PARQUET]
  return [
    Codes(np.array(codes, np.int32), np.array(counts, np.int32), int(level))
    for codes, counts, level in zip(*columns, strict=True)
  ]


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
