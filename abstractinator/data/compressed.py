"""Files that are read as they are or decompressed, as their first bytes tell.

A compressed file is decompressed once in each process, into a temporary file
without a name, so that any slice of it can be read.
"""

import bz2
import contextlib
import io
import lzma
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from abstractinator.data.documents import one_line
from abstractinator.data.extras import import_extra
from abstractinator.data.globs import version

# First bytes of each format that is decompressed, and endings of its files.
_FORMATS = {
  'gzip': (b'\x1f\x8b\x08', ('gz', 'gzip')),
  'bzip2': (b'BZh', ('bz2',)),
  'xz': (b'\xfd7zXZ\0', ('xz',)),
  'zstd': (b'(\xb5/\xfd', ('zst', 'zstd')),
}
# Bytes at a position that tell formats which are not read.
_REFUSED = {
  'zip': (0, b'PK\x03\x04'),
  '7z': (0, b"7z\xbc\xaf'\x1c"),
  'lz4': (0, b'\x04"M\x18'),
  'tar': (257, b'ustar'),
}
_HEAD_BYTES = 512
# Few bytes may decompress to some 30,000 times as many.
_CHUNK_BYTES = 1 << 10
# The largest dictionary of `xz -9` is a quarter of it.
_MAX_XZ_BYTES = 1 << 28


def find_compression(path: str) -> str:
  """Returns how a file is compressed: 'gzip', 'bzip2', 'xz', 'zstd' or ''.

  Raises:
    ValueError: If it is of a format that is not read, or not what its ending
      says.
    OSError: If it cannot be read.
  """
  with open(path, 'rb') as file:
    head = file.read(_HEAD_BYTES)
  found = next(
    (name for name, (magic, _) in _FORMATS.items() if head.startswith(magic)),
    '',
  )
  # Text may begin with the three letters, but not with a whole header.
  if found == 'bzip2' and head[4:10] not in (b'1AY&SY', b'\x17rE8P\x90'):
    found = ''
  if not found:
    _require_no_archive(head, path)
    ending = path.lower().rpartition('.')[2]
    for name, (_, endings) in _FORMATS.items():
      if head and ending in endings:
        raise ValueError(
          f'{path}: ends in .{ending} but is not in the format {name}, allowed:'
          f' {name}; or `raw:` before the path to read its bytes'
        )
  return found


def without_ending(path: str) -> str:
  """Returns a path in lower case without the ending of a compressed file."""
  path = path.lower()
  stem, _, ending = path.rpartition('.')
  is_compressed = any(ending in endings for _, endings in _FORMATS.values())
  return stem if is_compressed else path


def open_content(path: str, compression: str = '') -> BinaryIO:
  """Opens a file to read its content.

  Args:
    path: Path of the file.
    compression: Result of `find_compression`; '' reads the file as it is.

  Raises:
    ValueError: If it is damaged, or a library is missing that decompresses it.
    OSError: If it cannot be read.
  """
  if not compression:
    return open(path, 'rb')
  return io.BufferedReader(_Spooled(*_SPOOL.place(path, compression)))


def read_slice(
  path: str, start: int, stop: int, compression: str = ''
) -> bytes:
  """Returns bytes `start` to `stop` of the content, as far as it goes."""
  # Buffered, since one call of the system reads 2 GiB at most.
  with open_content(path, compression) as file:
    file.seek(start)
    return file.read(stop - start)


class _Spool:
  """Temporary file with the contents of compressed files, end to end."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._file: BinaryIO | None = None
    self._places: dict[tuple[int, ...], tuple[int, int]] = {}

  def place(self, path: str, compression: str) -> tuple[BinaryIO, int, int]:
    """Returns the temporary file, and where a content begins and ends in it."""
    file = version(path)
    with self._lock:
      if self._file is None:
        self._file = tempfile.TemporaryFile(buffering=0)
      if file not in self._places:
        start = self._file.seek(0, os.SEEK_END)
        try:
          self._write(path, compression)
        except BaseException:
          self._file.truncate(start)
          raise
        self._places[file] = start, self._file.tell()
      return self._file, *self._places[file]

  def _write(self, path: str, compression: str) -> None:
    assert self._file is not None
    head = b''
    for content in _decompress(path, compression):
      if len(head) < _HEAD_BYTES:
        head += content[:_HEAD_BYTES]
        _require_no_archive(head, path)
      try:
        view = memoryview(content)
        while view:
          view = view[self._file.write(view) :]
      except OSError as error:
        raise ValueError(
          f'{path}: cannot be decompressed in {tempfile.gettempdir()}:'
          f' {error.strerror}, allowed: a directory with room in TMPDIR'
        ) from error


_SPOOL = _Spool()


class _Spooled(io.RawIOBase):
  """A part of the temporary file, as a file of its own."""

  def __init__(self, file: BinaryIO, start: int, stop: int):
    self._file, self._start, self._size = file, start, stop - start
    self._position = 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
    base[os.SEEK_END] = self._size
    self._position = base[whence] + offset
    return self._position

  def readinto(self, buffer: Any) -> int:
    view = memoryview(buffer)[: max(self._size - self._position, 0)]
    # Unlike `seek` and `read`, from any number of threads.
    read = os.preadv(self._file.fileno(), [view], self._start + self._position)
    self._position += read
    return read


def _decompress(path: str, compression: str) -> Iterator[bytes]:
  """Yields the content of a compressed file, which may have several parts."""
  new = _decompressor(path, compression)
  decompressor = new()
  with open(path, 'rb') as file:
    while data := file.read(_CHUNK_BYTES):
      while data:
        if decompressor.eof:
          # Zeros may fill up a part.
          data = data.lstrip(b'\0')
          if not data:
            break
          decompressor = new()
        with _damage(path, compression):
          content = decompressor.decompress(data)
        yield content
        data = decompressor.unused_data if decompressor.eof else b''
  if not decompressor.eof:
    raise ValueError(f'{path}: is cut off, allowed: a whole file')


@contextlib.contextmanager
def _damage(path: str, compression: str) -> Iterator[None]:
  try:
    yield
  # Each library has errors of its own.
  except Exception as error:
    raise ValueError(
      f'{path}: is damaged: {one_line(error)}, allowed: a file in the format'
      f' {compression}'
    ) from error


def _decompressor(path: str, compression: str) -> Callable[[], Any]:
  """Returns a function that makes a decompressor of a part."""
  match compression:
    case 'gzip':
      return lambda: zlib.decompressobj(wbits=31)
    case 'bzip2':
      return bz2.BZ2Decompressor
    case 'xz':
      return lambda: lzma.LZMADecompressor(memlimit=_MAX_XZ_BYTES)
  zstandard = import_extra('zstandard', 'zstd', path)
  return lambda: zstandard.ZstdDecompressor().decompressobj()


def _require_no_archive(head: bytes, path: str) -> None:
  for name, (at, magic) in _REFUSED.items():
    if head[at : at + len(magic)] == magic:
      raise ValueError(
        f'{path}: is in the format {name}, allowed: {", ".join(_FORMATS)}; or'
        ' `raw:` before the path to read its bytes'
      )
