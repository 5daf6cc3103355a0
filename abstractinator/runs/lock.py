"""Lock of a directory that one process at a time may write to."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Self

from abstractinator.data.whole_files import TEMPORARY

NAME = f'{TEMPORARY}lock'
# The process that holds a lock touches it this often. Where others cannot see
# the process itself, the lock is stale after as long as STALE_SECONDS.
TOUCH_SECONDS, STALE_SECONDS = 20.0, 300.0


class Lock:
  """Lock of a directory, held as a context; a file in the directory.

  It works on disks that several machines share: the file is created exclusively
  and names the machine and the process that holds it. A process that was killed
  leaves it; the next one recognizes that and takes the lock over.
  """

  def __init__(self, directory: str):
    """Changes nothing yet.

    Args:
      directory: Directory to lock. It is created if need be, and removed at the
        end if nothing was written to it.
    """
    self._directory = directory
    self._path = os.path.join(directory, NAME)
    self._me = {**_place(), 'pid': os.getpid(), 'started': _started()}
    self._ended = threading.Event()
    self._made: list[str] = []

  def __enter__(self) -> Self:
    """Takes the lock.

    Raises:
      ValueError: If another process holds it.
      OSError: If the directory cannot be written to.
    """
    above = os.path.abspath(self._directory)
    while not os.path.lexists(above):
      self._made.append(above)
      above = os.path.dirname(above)
    try:
      os.makedirs(self._directory, exist_ok=True)
      with _one_by_one(self._directory):
        self._take()
    except BaseException:
      self._remove_empty()
      raise
    threading.Thread(target=self._touch, daemon=True).start()
    return self

  def _take(self) -> None:
    while True:
      try:
        file = open(self._path, 'x', encoding='utf-8')
      except FileExistsError:
        self._end_stale()
        continue
      try:
        with file:
          json.dump(self._me, file)
      except BaseException:
        os.unlink(self._path)
        raise
      return

  def _end_stale(self) -> None:
    """Removes the lock of a process that is gone.

    Raises:
      ValueError: If the process is not known to be gone.
    """
    try:
      with open(self._path, 'rb') as file:
        holder = _parse(file.read())
        status = os.fstat(file.fileno())
    except FileNotFoundError:
      return
    # The clock of the disk, which need not be that of this machine.
    with tempfile.TemporaryFile(prefix=TEMPORARY, dir=self._directory) as file:
      age = max(os.fstat(file.fileno()).st_mtime - status.st_mtime, 0.0)
    is_visible = holder.items() >= _place().items()
    if is_visible:
      is_gone = _started(holder.get('pid')) != holder.get('started')
    else:
      is_gone = age > STALE_SECONDS
    if not is_gone:
      hint = (
        ''
        if is_visible
        else f'; {age:.0f} s ago it was alive. If it is gone, remove the lock,'
        f' or wait until that is {STALE_SECONDS:.0f} s ago'
      )
      raise ValueError(
        f'{self._directory}: process {holder.get("pid")} on'
        f' {holder.get("host")} writes there, allowed: one process at a time'
        f' ({self._path}{hint})'
      )
    self._remove(status)

  def _remove(self, stale: os.stat_result) -> None:
    """Removes the lock, unless it is another one by now.

    It is moved away first: two machines could find the same stale lock, and
    the slower one must not remove the new lock of the faster one.
    """
    with tempfile.TemporaryDirectory(
      prefix=TEMPORARY, dir=self._directory
    ) as folder:
      moved = os.path.join(folder, 'lock')
      with contextlib.suppress(FileNotFoundError):
        os.rename(self._path, moved)
        found = os.stat(moved)
        if found.st_mtime_ns != stale.st_mtime_ns:
          os.rename(moved, self._path)

  def _touch(self) -> None:
    while not self._ended.wait(TOUCH_SECONDS):
      with contextlib.suppress(OSError):
        os.utime(self._path)

  def _remove_empty(self) -> None:
    """Removes the directories that were created, as far as they are empty."""
    for directory in self._made:
      with contextlib.suppress(OSError):
        os.rmdir(directory)

  def __exit__(self, *unused: object) -> None:
    """Gives the lock back, unless another process has taken it over."""
    self._ended.set()
    with contextlib.suppress(OSError):
      with open(self._path, 'rb') as file:
        is_mine = _parse(file.read()) == self._me
      if is_mine:
        os.unlink(self._path)
    self._remove_empty()


@contextlib.contextmanager
def _one_by_one(directory: str) -> Iterator[None]:
  """Lets the processes of this machine take a lock one after the other."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    # Some disks that machines share refuse this.
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _parse(content: bytes) -> dict[str, Any]:
  """Returns what a lock says of its holder; {} if it is not written yet."""
  try:
    values = json.loads(content)
  except (ValueError, RecursionError):
    return {}
  return values if isinstance(values, dict) else {}


def _place() -> dict[str, str]:
  """Returns what processes have in common that see each other's numbers."""
  try:
    with open('/proc/sys/kernel/random/boot_id', encoding='ascii') as file:
      boot = file.read().strip()
    namespace = os.readlink('/proc/self/ns/pid')
  except OSError:  # not Linux
    boot = namespace = ''
  return {'host': socket.gethostname(), 'boot': boot, 'namespace': namespace}


def _started(pid: Any = None) -> str | None:
  """Returns when a process began, which its number alone does not tell.

  Args:
    pid: Number of the process; this one by default.

  Returns:
    A text; None if there is no such process, or it has ended.
  """
  pid = os.getpid() if pid is None else pid
  if os.path.isdir('/proc/self'):
    try:
      with open(f'/proc/{pid}/stat', 'rb') as file:
        # The name of the program, in parentheses, may hold anything.
        state, *fields = file.read().rpartition(b')')[2].split()
    except OSError:
      return None
    return None if state in b'ZX' else fields[18].decode()
  found = subprocess.run(
    ['ps', '-o', 'lstart=', '-p', str(pid)], capture_output=True, text=True
  )
  return found.stdout.strip() or None
