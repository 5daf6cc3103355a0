"""Progress of a run on the console."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

_BAR_WIDTH = 10
_LOG_COLUMNS = 80
# Least time between two lines of a log file, and two states of a terminal.
_LOG_INTERVAL_SECONDS, _TERMINAL_INTERVAL_SECONDS = 5.0, 0.1
# Time of a batch of an evaluation, in training steps, before one is measured.
_STEPS_PER_BATCH = 0.5


class Progress:
  """Progress line: time left, step and values.

  On a terminal it is one line, rewritten in place; in a log file it is one
  plain line every few seconds. Values that do not fit into the line are left
  out, those at the end first. A terminal with room for it shows a bar.

  The time left is that of the steps and of the batches of evaluations to come.
  Compilation does not count: it is over after the first step, and after the
  first batch of an evaluation.
  """

  def __init__(
    self,
    total_steps: int,
    batches_after: Callable[[int], int] = lambda step: 0,
    stream: TextIO | None = None,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_steps: Number of optimizer steps of the run.
      batches_after: Function from a step to the number of batches of all
        evaluations after that step.
      stream: Output stream, standard error by default.
      enabled: Whether to show anything: true on one process of a run.
      clock: Returns the time, seconds since any moment.
    """
    self._enabled = enabled
    self._total_steps = total_steps
    self._batches_after = batches_after
    self._stream = sys.stderr if stream is None else stream
    self._is_terminal = self._stream.isatty()
    self._interval_seconds = (
      _TERMINAL_INTERVAL_SECONDS if self._is_terminal else _LOG_INTERVAL_SECONDS
    )
    self._clock = clock
    self._steps = _Rate(clock)
    self._batches = _Rate(clock)
    self._step = 0
    self._last_shown = -math.inf
    self._line = ''
    self._is_line_shown = True

  def update(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the state after a step; shows it if the last one is old enough.

    Args:
      step: Optimizer steps done in the run, also by earlier processes.
      values: Values to show, by label, the most important ones first.
    """
    if not self._enabled:
      return
    self._step = step
    self._steps.count()
    parts = [f'step {step}/{self._total_steps}']
    parts += [f'{name} {_short(value)}' for name, value in values.items()]
    # An evaluation after this step is still to come.
    batches = self._batches_after(step - 1)
    self._set_line(parts, batches, at_once=step >= self._total_steps)

  def evaluated(self, step: int, done: int, total: int) -> None:
    """Takes the state after a batch of an evaluation, while steps are paused.

    Args:
      step: Optimizer steps done in the run.
      done: Batches done; 0 is shown at once, since compilation may follow.
      total: Batches of the evaluation.
    """
    if not self._enabled:
      return
    self._step = step
    if done <= 1:
      # The first batch includes compilation; time counts from its end.
      self._batches.pause()
    if done:
      self._batches.count()
    parts = [f'step {self._step}/{self._total_steps}']
    parts.append(
      f'evaluating, batch {done}/{total}'
      if self._batches.has_begun
      else 'compiling the evaluation'
    )
    batches = self._batches_after(self._step) + total - done
    self._set_line(parts, batches, at_once=not done)
    # At the end of a run the last step counts, not this.
    self._is_line_shown = True

  def pause(self) -> None:
    """Stops the clock of steps, for what is not training."""
    self._steps.pause()

  def resume(self) -> None:
    """Starts the clock of steps again."""
    self._steps.resume()

  def message(self, text: str) -> None:
    """Prints a line of text, on a terminal above the progress line."""
    if not self._enabled:
      return
    if self._is_terminal:
      self._stream.write(f'\r\x1b[K{text}\n')
      if self._line:
        self._show()
    else:
      self._stream.write(f'{text}\n')
    self._stream.flush()

  def close(self) -> None:
    """Shows the last step if it was held back, and ends the line."""
    if not self._is_line_shown:
      self._show()
    if self._is_terminal and self._line:
      self._stream.write('\n')
      self._stream.flush()

  def _set_line(self, parts: list[str], batches: int, at_once: bool) -> None:
    """Makes the line of its parts and shows it if it is time to.

    Args:
      parts: Parts of the line after the time left.
      batches: Batches of evaluations to come.
      at_once: Whether to show it in any case.
    """
    left = self._seconds_left(batches)
    if left is not None:
      parts.insert(0, f'{_duration(left)} left')
    columns = self._columns()
    self._line = '  '.join(_fitting(parts, columns))
    done = min(_BAR_WIDTH * self._step // self._total_steps, _BAR_WIDTH)
    bar = '  [' + '#' * done + '.' * (_BAR_WIDTH - done) + ']'
    if self._is_terminal and len(self._line + bar) <= columns:
      self._line += bar
    self._is_line_shown = False
    now = self._clock()
    if at_once or now - self._last_shown >= self._interval_seconds:
      self._last_shown = now
      self._show()

  def _seconds_left(self, batches: int) -> float | None:
    """Returns the time to the end of the run; None before it can be known."""
    per_step = self._steps.seconds()
    if per_step is None:
      return None
    per_batch = self._batches.seconds()
    if per_batch is None:
      per_batch = _STEPS_PER_BATCH * per_step
    steps = max(self._total_steps - self._step, 0)
    return steps * per_step + batches * per_batch

  def _columns(self) -> int:
    if not self._is_terminal:
      return _LOG_COLUMNS
    # The last column stays free: a full line would wrap.
    return shutil.get_terminal_size().columns - 1

  def _show(self) -> None:
    self._is_line_shown = True
    if self._is_terminal:
      self._stream.write(f'\r\x1b[K{self._line[: self._columns()]}')
    else:
      self._stream.write(f'{self._line}\n')
    self._stream.flush()


class _Rate:
  """Mean time of what is counted, without the first one and without pauses.

  Attributes:
    has_begun: Whether one was counted.
  """

  def __init__(self, clock: Callable[[], float]):
    self._clock = clock
    self.has_begun = False
    self._since: float | None = None
    self._seconds, self._number = 0.0, 0

  def count(self) -> None:
    """Counts one if the clock runs; starts the clock otherwise."""
    now = self._clock()
    if self._since is not None:
      self._seconds += now - self._since
      self._number += 1
    self._since, self.has_begun = now, True

  def pause(self) -> None:
    """Stops the clock."""
    self._since = None

  def resume(self) -> None:
    """Starts the clock again, if it has run."""
    self._since = self._clock() if self.has_begun else None

  def seconds(self) -> float | None:
    """Returns the seconds of one; None before one was counted."""
    return self._seconds / self._number if self._number else None


def _fitting(parts: list[str], columns: int) -> list[str]:
  """Returns the first of some parts: those that fit into a line together."""
  length = -2
  found: list[str] = []
  for part in parts:
    length += 2 + len(part)
    if found and length > columns:
      break
    found.append(part)
  return found


def _short(value: float) -> str:
  """Returns four significant digits, with k, M, G or T for large numbers."""
  for suffix in ('', 'k', 'M', 'G'):
    # Numbers that would round up to 1000 belong to the next suffix.
    if not abs(value) >= 999.95:
      return f'{value:#.4g}{suffix}'
    value /= 1000
  return f'{value:#.4g}T'


def _duration(seconds: float) -> str:
  """Returns hours, minutes and seconds."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}h{minutes:02}m'
  return f'{minutes}m{seconds:02}s' if minutes else f'{seconds}s'
