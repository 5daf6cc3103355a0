"""Compiled programs of all commands of a user, kept on the disk.

jax's own file cache writes entries in place and does not notice damage. Here an
entry appears whole or not at all and begins with its checksum, and those that
were not used for the longest time go when there are too many. Several processes
may share a directory.
"""

import contextlib
import hashlib
import importlib
import os
import pathlib
import platform
import shutil
import sys
import time
from typing import Any

import jax

from abstractinator.data.whole_files import TEMPORARY, write_whole

# Variable by which jax is given a directory; empty for none.
VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
MAX_BYTES = 2 << 30
_SUFFIX = '.program'
_DIGEST_BYTES = 32
# Age of a temporary file that no process can still be writing.
_STALE_SECONDS = 3600
# Lines of /proc/cpuinfo on which the code that XLA writes for a CPU depends.
_CPU_LINES = (
  *('vendor_id', 'cpu family', 'model', 'flags'),
  *('CPU implementer', 'CPU variant', 'CPU part', 'Features'),
)


def use(directory: str | None = None) -> str | None:
  """Makes jax keep compiled programs on the disk, for this process.

  Nothing changes if `directory` is not given and jax has a directory already,
  which `JAX_COMPILATION_CACHE_DIR` may name: that one is jax's own cache.

  Args:
    directory: Directory of the programs, created if need be; empty for none. By
      default it is that of this machine in the user's cache directory, or none
      if the variable is empty.

  Returns:
    A line about it for the log; None if nothing changed or nothing is kept.
  """
  config: Any = jax.config
  if directory is None:
    directory = config.jax_compilation_cache_dir
    if directory:
      return None
  if directory == '':
    config.update('jax_enable_compilation_cache', False)
  if not config.jax_enable_compilation_cache:
    return None
  directory = directory or default_directory()
  try:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    # No public function of jax takes another cache than its own.
    of_jax: Any = importlib.import_module('jax._src.compilation_cache')
    if not hasattr(of_jax, 'get_file_cache'):
      raise ImportError('this version of jax takes no cache')
  except (OSError, ImportError) as error:
    return f'compiled programs: not kept ({error})'
  programs = Programs(directory)
  of_jax.reset_cache()
  of_jax.get_file_cache = lambda path: (programs, path)
  config.update('jax_compilation_cache_dir', directory)
  # Small programs are many: together they take seconds.
  config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return f'compiled programs: kept in {directory}; off by {VARIABLE}='


def default_directory() -> str:
  """Returns the directory of this machine in the user's cache directory.

  A program for a CPU fits CPUs with the same features, which jax's keys leave
  out; machines that share a home directory have directories of their own.
  """
  root = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(root):
    root = os.path.expanduser('~/.cache')
  return os.path.join(root, 'abstractinator', 'jax', _machine())


def _machine() -> str:
  """Returns a name for the kind of CPU of this machine."""
  lines = [platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/cpuinfo').read_text()
    first = text.partition('\n\n')[0].splitlines()
    lines += [x for x in first if x.partition('\t')[0].strip() in _CPU_LINES]
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


class Programs:
  """Files with compiled programs, which jax reads and writes by key.

  A file is the SHA-256 of a program and then the program.
  """

  def __init__(self, directory: str, max_bytes: int = MAX_BYTES):
    """Opens a directory.

    Args:
      directory: The directory, which exists.
      max_bytes: Size of all files above which the least recently used go. A
        program above an eighth of it is not kept. Each process that writes may
        add an eighth before it notices what others have written.
    """
    # The name is jax's.
    self._path = pathlib.Path(directory)
    self._max_bytes = max_bytes
    # Bytes that may be written before the files are counted again.
    self._room = 0
    self._is_writable = True

  def get(self, key: str) -> bytes | None:
    """Returns a program; None if there is none. A damaged one is removed."""
    path = self._path / f'{key}{_SUFFIX}'
    try:
      content = path.read_bytes()
    except OSError:
      return None
    digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    is_sound = _digest(program) == digest
    with contextlib.suppress(OSError):
      if is_sound:
        os.utime(path)
      else:
        path.unlink()
    return program if is_sound else None

  def put(self, key: str, value: bytes) -> None:
    """Keeps a program, if it can be written; says so once if it cannot."""
    content = _digest(value) + value
    if not self._is_writable or len(content) > self._max_bytes // 8:
      return
    try:
      if len(content) > self._room:
        self._make_room()
      self._room -= len(content)
      path = self._path / f'{key}{_SUFFIX}'
      # Damage is noticed, so that nothing has to wait for the disk.
      write_whole(str(path), content, is_synced=False)
    except OSError as error:
      self._is_writable = False
      sys.stderr.write(f'compiled programs: no longer kept ({error})\n')

  def _make_room(self) -> None:
    """Removes the files that were not used for the longest time."""
    found, now = [], time.time()
    for entry in os.scandir(self._path):
      # Another process may remove it meanwhile.
      with contextlib.suppress(FileNotFoundError):
        about = entry.stat()
        if entry.name.endswith(_SUFFIX):
          found.append((about.st_mtime, about.st_size, entry.path))
        elif entry.name.startswith(TEMPORARY):
          if now - about.st_mtime > _STALE_SECONDS:
            shutil.rmtree(entry.path, ignore_errors=True)
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
      if total <= self._max_bytes * 13 // 16:
        break
      with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
      total -= size
    self._room = self._max_bytes // 8


def _digest(program: bytes) -> bytes:
  return hashlib.sha256(program).digest()
