"""Files of codes and manifests that are damaged."""

import functools
import io
import json
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from abstractinator.codes import corpus, files
from abstractinator.codes.codes import Codes
from tests.codes.corpus_test import TEXTS, Encoder, encode
from tests.helpers import fuzz

CODES = [
  Codes(np.array([7, 3, 9, 4], np.int32), np.array([2], np.int32), 1),
  Codes(np.array([1, 2, 3, 4, 5, 6], np.int32), np.array([1, 2], np.int32), 1),
  Codes(np.arange(400, dtype=np.int32), np.array([200], np.int32), 1),
]


def _listed(codes):
  return [(x.codes_N.tolist(), x.count_B.tolist(), x.level) for x in codes]


def _require_whole(codes):
  """Checks that a file of codes holds what it promises, whatever it holds."""
  assert codes
  queries = {len(x.codes_N) / x.count_B.sum() for x in codes if len(x.count_B)}
  assert len(queries) <= 1
  assert len({x.level for x in codes}) == 1
  for text in codes:
    assert text.codes_N.dtype == text.count_B.dtype == np.int32
    assert text.count_B.min(initial=1) >= 1
    assert text.level >= 0


@functools.cache
def _content(kind: str) -> bytes:
  return files.to_bytes(f'a.{kind}', CODES)


def _npz(random, folder):
  """Mutated archives, which have checksums: the right codes or none."""
  path = folder / 'a.npz'
  path.write_bytes(fuzz.mutate(random, _content('npz')))
  assert _listed(files.read_codes(str(path))) == _listed(CODES)


def _npz_members(random, folder):
  """Arrays that are mutated before their checksums are computed."""
  path = folder / 'a.npz'
  with (
    zipfile.ZipFile(io.BytesIO(_content('npz'))) as source,
    zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive,
  ):
    changed = str(random.choice(source.namelist()))
    for name in source.namelist():
      content = source.read(name)
      if name == changed:
        content = fuzz.mutate(random, content)
      archive.writestr(name, content)
  _require_whole(files.read_codes(str(path)))


def _parquet(random, folder):
  """Mutated Parquet, whose pages alone have checksums."""
  path = folder / 'a.parquet'
  path.write_bytes(fuzz.mutate(random, _content('parquet')))
  _require_whole(files.read_codes(str(path)))


def _parquet_columns(random, folder):
  """Columns of other types and values."""
  values = [0, 1, -1, 1 << 31, 1.5, True, None, '1', [1], b'1']

  def draw(count):
    return [values[i] for i in random.integers(len(values), size=count)]

  columns = {'codes': [[1, 2], [3]], 'counts': [[2], [1]], 'level': [0, 0]}
  changed = str(random.choice([*columns]))
  columns[changed] = draw(2) if random.integers(2) else [draw(2), draw(1)]
  if random.integers(8) == 0:
    del columns[changed]
  path = folder / 'a.parquet'
  try:
    table = pyarrow.table(columns)
  except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
    return  # No columns of that kind exist.
  pyarrow.parquet.write_table(table, path)
  found = files.read_codes(str(path))
  _require_whole(found)
  for codes, written in zip(found, columns['codes'], strict=True):
    assert codes.codes_N.tolist() == written
    assert all(type(code) is int for code in written)


def _manifest(random, folder):
  """Mutated manifests: refused, then mended without a loss, or refused."""
  encode(folder, Encoder())
  path = folder / corpus.MANIFEST
  content = path.read_bytes()
  if random.integers(2):
    path.write_bytes(fuzz.mutate(random, content))
  else:
    path.write_text(json.dumps(_changed(random, json.loads(content))))
  expected = [[len(x) for x in TEXTS[a:b]] for a, b in ((0, 2), (2, 4), (4, 5))]

  def read():
    shards = corpus.read_corpus(str(folder))
    return [[len(x.codes_N) for x in shard] for shard in shards]

  try:
    found = read()
  except ValueError:
    encode(folder, Encoder())
    found = read()
  assert found == expected


def _changed(random, value):
  """Returns a JSON value with one value somewhere in it exchanged."""
  others = [0, -1, 1 << 70, 1.5, True, None, '', '../x', [], {}, [[]] * 9]
  if isinstance(value, dict | list) and value and random.integers(5):
    copy = value.copy()
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    key = keys[random.integers(len(keys))]
    copy[key] = _changed(random, copy[key])
    return copy
  return others[random.integers(len(others))]


@pytest.mark.nightly
@pytest.mark.parametrize(
  ('case', 'count', 'least'),
  [
    (_npz, 500, 1),
    (_npz_members, 400, 10),
    (_parquet, 500, 5),
    (_parquet_columns, 300, 1),
    (_manifest, 500, 50),
  ],
)
def test_codes(case, count, least, tmp_path):
  counts = fuzz.run(case, count, tmp_path)
  assert counts.total() == count
  assert counts['right'] >= least
  assert counts['refused'] >= least
