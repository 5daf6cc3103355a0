"""Benchmarks that compile side by side and measure one after the other."""

import fcntl
import os
import pathlib
import time

_VARIABLE = 'BENCHMARK_TURNS'
_SECONDS = 0.2
# Open to the end of the process.
_held = []


def environment(directory: str, count: int, seconds: float) -> dict[str, str]:
  """What tells processes to share an empty directory, and so a device.

  Args:
    directory: Has to be there until they end.
    count: How many there are.
    seconds: After which those that are ready begin without the others.

  Returns:
    Variables of their environment.
  """
  text = f'{count} {time.time() + seconds}'
  (pathlib.Path(directory) / 'awaited').write_text(text)
  return {_VARIABLE: directory}


def give_up(directory: str, pid: int) -> None:
  """Says that nobody needs to wait for a process."""
  (pathlib.Path(directory) / f'{pid}.ready').touch()


def take() -> None:
  """Waits until all are ready, and for the device, which it has to its end.

  What a process allocates goes with it only. Once a process; at once for one
  that shares with nobody.

  Raises:
    FileNotFoundError: If the directory is gone.
  """
  name = os.environ.get(_VARIABLE)
  if name is None:
    return
  give_up(name, os.getpid())
  directory = pathlib.Path(name)
  count, deadline = (directory / 'awaited').read_text().split()
  while time.time() < float(deadline):
    if sum(path.endswith('.ready') for path in os.listdir(name)) >= int(count):
      break
    time.sleep(_SECONDS)
  _held.append(open(directory / 'lock', 'w'))
  fcntl.flock(_held[-1], fcntl.LOCK_EX)
