"""Compressed files: every format, any slice, damage, archives."""

import bz2
import concurrent.futures
import gzip
import io
import lzma
import pickle
import sys
import tarfile
import tempfile
import zipfile

import numpy as np
import pytest
import zstandard

from abstractinator.data import compressed, sources
from tests.helpers.document_files import contents, names, write

COMPRESS = {
  'gz': gzip.compress,
  'bz2': bz2.compress,
  'xz': lzma.compress,
  'zst': zstandard.compress,
}
# More than a piece that is read at once, in any format.
TEXT = np.random.default_rng(0).integers(0, 256, 70_000).astype(np.uint8)
TEXT = TEXT.tobytes()
LINES = b'{"text": "one"}\n{"text": ""}\n{"text": "three"}\n'


@pytest.mark.parametrize('ending', COMPRESS)
def test_compressed_files_are_read(tmp_path, ending):
  compress = COMPRESS[ending]
  write(tmp_path, **{f'a_txt_{ending}': compress(TEXT)})
  write(tmp_path, **{f'b_jsonl_{ending}': compress(LINES)})
  # Neither its name nor its ending says that it is compressed.
  write(tmp_path, c=compress(b'c'), d_jsonl=compress(LINES))
  documents = sources.find_documents(f'{tmp_path}/*')
  assert contents(documents) == [
    *(TEXT, b'one', b'three', b'c', b'one', b'three')
  ]
  assert names(documents)[:2] == [f'a.txt.{ending}', f'b.jsonl.{ending}:1']
  assert documents[0].read(60_000, 60_010) == TEXT[60_000:60_010]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    read = pool.map(lambda at: documents[0].read(at, at + 5), range(500))
  assert [*read] == [TEXT[at : at + 5] for at in range(500)]
  assert contents(pickle.loads(pickle.dumps(documents))) == contents(documents)


@pytest.mark.parametrize('ending', COMPRESS)
def test_parts_are_joined_and_what_is_cut_off_or_damaged_is_refused(
  tmp_path, ending
):
  path = tmp_path / f'a.{ending}'
  part = COMPRESS[ending](TEXT)
  path.write_bytes(part + bytes(4) + part + bytes(4))
  (document,) = sources.find_documents(str(path))
  assert document.read_bytes() == TEXT + TEXT
  for number, (content, reason) in enumerate(
    [
      (part[:-1], 'is cut off'),
      (part + part[:2000], 'is cut off'),
      (part + b'garbage that follows', 'is damaged'),
      (part[:5000] + b'!' + part[5001:], 'is damaged'),
      (part[:20], 'is cut off'),
    ]
  ):
    if ending == 'zst' and number == 3:
      continue  # It has no checksum unless it is asked for.
    path = tmp_path / f'{number}.{ending}'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'{path}: {reason}.*, allowed'):
      sources.find_documents(str(path))


def test_a_file_is_decompressed_once(tmp_path, monkeypatch):
  write(tmp_path, a_gz=gzip.compress(TEXT))
  (document,) = sources.find_documents(f'{tmp_path}/*')
  monkeypatch.setattr(compressed, '_decompress', None)
  assert document.read_bytes() == TEXT
  monkeypatch.undo()
  # A file that has changed is another.
  write(tmp_path, a_gz=gzip.compress(TEXT[:100]))
  with pytest.raises(ValueError, match='has changed: got 5 '):
    document.read(95, 105)
  (document,) = sources.find_documents(f'{tmp_path}/*')
  assert document.read_bytes() == TEXT[:100]


def test_archives_and_wrong_endings_are_refused(tmp_path):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('a.txt', 'a')
  zipped = buffer.getvalue()
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('a.txt'))
  tar = buffer.getvalue()
  for name, content, reason in (
    ('a.docx', zipped, 'is in the format zip'),
    ('b.tar', tar, 'is in the format tar'),
    ('c.tar.gz', gzip.compress(tar), 'is in the format tar'),
    ('d.jsonl.gz', LINES, 'ends in .gz but is not in the format gzip'),
    ('e.xz', gzip.compress(b'e'), None),
    ('f.npy.gz', gzip.compress(b'f'), 'is in the format gzip, allowed: .npy'),
    ('g.parquet', gzip.compress(b'g'), 'is in the format gzip'),
    ('BZh', b'BZh is no header', None),
  ):
    (tmp_path / name).write_bytes(content)
    if reason:
      with pytest.raises(ValueError, match=f'{name}: {reason}'):
        sources.find_documents(f'{tmp_path}/{name}')
    else:
      assert len(sources.find_documents(f'{tmp_path}/{name}')) == 1


def test_zstd_says_what_to_install(tmp_path, monkeypatch):
  write(tmp_path, a_zst=zstandard.compress(b'a'))
  monkeypatch.setitem(sys.modules, 'zstandard', None)
  with pytest.raises(ValueError, match=r'a\.zst: needs zstandard.*\[zstd\]'):
    sources.find_documents(f'{tmp_path}/*')


def test_a_full_temporary_directory_is_named(tmp_path, monkeypatch):
  class Full(io.BytesIO):
    def write(self, data):
      raise OSError(28, 'No space left on device')

  monkeypatch.setattr(tempfile, 'TemporaryFile', lambda buffering: Full())
  monkeypatch.setattr(compressed, '_SPOOL', compressed._Spool())
  write(tmp_path, a_gz=gzip.compress(b'a'))
  with pytest.raises(ValueError, match=r'a\.gz: .*No space left.*TMPDIR'):
    sources.find_documents(f'{tmp_path}/*')


def test_a_slice_is_as_long_as_asked_for(tmp_path, monkeypatch):
  """A call of the system returns at most 2 GiB, here 7 bytes."""

  class Short(io.FileIO):
    def read(self, size=-1):
      return super().read(min(size, 7) if size >= 0 else size)

    def readinto(self, buffer):
      return super().readinto(memoryview(buffer)[:7])

  def open_short(path, mode, buffering=-1):
    file = Short(path, mode)
    return io.BufferedReader(file) if buffering else file

  write(tmp_path, a_txt=TEXT)
  (document,) = sources.find_documents(f'{tmp_path}/*')
  monkeypatch.setattr('builtins.open', open_short)
  assert document.read(100, 50_000) == TEXT[100:50_000]


@pytest.mark.nightly
def test_a_document_of_over_two_gib(tmp_path):
  size = (1 << 31) + 5
  with open(tmp_path / 'a.bin', 'wb') as file:
    file.truncate(size)
    file.seek(size - 1)
    file.write(b'x')
  (document,) = sources.find_documents(f'{tmp_path}/*')
  content = document.read_bytes()
  assert len(content) == size
  assert content.endswith(b'\0x')
