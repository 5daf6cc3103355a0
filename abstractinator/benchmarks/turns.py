"""Benchmarks that compile side by side and measure one after the other."""

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Iterator

_VARIABLE = 'BENCHMARK_TURNS'
_SECONDS = 0.2


def environment(directory: str, count: int) -> dict[str, str]:
  """What tells so many processes to share an empty directory."""
  (pathlib.Path(directory) / 'count').write_text(str(count))
  return {_VARIABLE: directory}


def give_up(directory: str, pid: int) -> None:
  """Says that nobody needs to wait for a process."""
  (pathlib.Path(directory) / f'{pid}.ready').touch()


@contextlib.contextmanager
def turn() -> Iterator[None]:
  """Has the device alone, once all have compiled; at once for who is alone."""
  name = os.environ.get(_VARIABLE)
  if name is None:
    yield
    return
  give_up(name, os.getpid())
  directory = pathlib.Path(name)
  count = int((directory / 'count').read_text())
  while len(list(directory.glob('*.ready'))) < count:
    time.sleep(_SECONDS)
  with open(directory / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
