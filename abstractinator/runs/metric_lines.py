"""The file metrics.jsonl of a run: a JSON object a line, read with checks."""

import json
import math
import os
from collections.abc import Iterable
from typing import Any

from abstractinator.data.whole_files import write_whole

# `step`, an int, and scalars by tag; None stands for one that is not finite.
Line = dict[str, Any]


def path_of(workdir: str | os.PathLike[str]) -> str:
  """Returns the path of the file in the directory of a run."""
  return os.path.join(workdir, 'metrics.jsonl')


def read(workdir: str | os.PathLike[str]) -> list[Line]:
  """Reads the lines of a run, but not one at the end that is half-written.

  Args:
    workdir: Directory of the run.

  Raises:
    ValueError: If the file cannot be read, or holds a line that is not a JSON
      object of a step and numbers.
  """
  path = path_of(workdir)
  try:
    with open(path, encoding='utf-8', errors='replace') as file:
      *lines, rest = file.read().split('\n')
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
  read = list(map(_parsed, lines))
  if None in read:
    number = read.index(None)
    raise ValueError(
      f'{path}:{number + 1}: got {lines[number][:60]!r}, allowed: a JSON object'
      ' of a step and numbers'
    )
  return [x for x in (*read, _parsed(rest)) if x is not None]


def last_step(workdir: str | os.PathLike[str]) -> int | None:
  """Returns the latest step of a run; None if it has written no line.

  Raises:
    ValueError: See `read`.
  """
  if not os.path.exists(path_of(workdir)):
    return None
  return max((line['step'] for line in read(workdir)), default=None)


def has(workdir: str | os.PathLike[str], step: int, name: str) -> bool:
  """Returns whether a line of a step has a scalar of that name.

  Raises:
    ValueError: See `read`.
  """
  if not os.path.exists(path_of(workdir)):
    return False
  return any(x['step'] == step and name in x for x in read(workdir))


def drop_after(workdir: str | os.PathLike[str], step: int) -> None:
  """Drops the lines of steps after `step`, and a half-written last line.

  Raises:
    ValueError: See `read`.
    OSError: If the file cannot be written; then it is unchanged.
  """
  if os.path.exists(path_of(workdir)):
    kept = [line for line in read(workdir) if line['step'] <= step]
    text = ''.join(map(to_text, kept))
    write_whole(path_of(workdir), text.encode())


def to_text(line: Line) -> str:
  """Returns a line of the file; values that are not finite become null."""
  # JSON has no NaN.
  return (
    json.dumps({k: x if _is_value(x) else None for k, x in line.items()}) + '\n'
  )


def minutes(lines: Iterable[Line]) -> float:
  """Returns how long a run has trained, without evaluation and checkpoints."""
  last, seconds = 0, 0.0
  for line in lines:
    step_seconds = line.get('perf/step_seconds')
    if step_seconds is not None:
      seconds += (line['step'] - last) * step_seconds
      last = line['step']
  return seconds / 60


def _parsed(text: str) -> Line | None:
  """Returns a line of the file; None if it is damaged."""
  try:
    line = json.loads(text)
  except (ValueError, RecursionError):
    return None
  if not isinstance(line, dict) or not all(map(_is_value, line.values())):
    return None
  step = line.get('step')
  return line if type(step) is int and step >= 0 else None


def _is_value(value: object) -> bool:
  """Returns whether a JSON value is null or a number of 64 bits."""
  if isinstance(value, int):
    return type(value) is int and abs(value) < 2**63
  return value is None or (isinstance(value, float) and math.isfinite(value))
