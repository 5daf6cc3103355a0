"""Progress of a run on the console."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

_BAR_WIDTH = 24
# Least time between two lines of a log file, and two states of a terminal.
_LOG_INTERVAL_SECONDS, _TERMINAL_INTERVAL_SECONDS = 5.0, 0.1


class Progress:
  """Progress line: step, values and time left.

  On a terminal it is one line with a bar, rewritten in place; in a log file it
  is one plain line every few seconds.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    stream: TextIO | None = None,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_steps: Number of optimizer steps of the run.
      start_step: Optimizer steps done before this process began.
      stream: Output stream, standard error by default.
      enabled: Whether to show anything: true on one process of a run.
      clock: Returns the time, seconds since any moment.
    """
    self._enabled = enabled
    self._total_steps = total_steps
    self._stream = sys.stderr if stream is None else stream
    self._is_terminal = self._stream.isatty()
    self._interval_seconds = (
      _TERMINAL_INTERVAL_SECONDS if self._is_terminal else _LOG_INTERVAL_SECONDS
    )
    self._clock = clock
    self._start = (start_step, clock())
    self._is_first = True
    self._last_shown = -math.inf
    self._line = ''
    self._is_line_shown = True

  def update(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the state after a step; shows it if the last one is old enough.

    Args:
      step: Optimizer steps done in the run, also by earlier processes.
      values: Values to show, by label, in the order of the line.
    """
    if not self._enabled:
      return
    now = self._clock()
    if self._is_first:
      # The first step includes the compilation: the time left is estimated
      # from the steps after it.
      self._start = (step, now)
      self._is_first = False
    self._line = self._format(step, values, now)
    self._is_line_shown = False
    is_last = step >= self._total_steps
    if is_last or now - self._last_shown >= self._interval_seconds:
      self._last_shown = now
      self._show()

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

  def _show(self) -> None:
    self._is_line_shown = True
    if self._is_terminal:
      # The last column stays free: a full line would wrap.
      width = shutil.get_terminal_size().columns - 1
      self._stream.write(f'\r\x1b[K{self._line[:width]}')
    else:
      self._stream.write(f'{self._line}\n')
    self._stream.flush()

  def _format(self, step: int, values: Mapping[str, float], now: float) -> str:
    parts = [f'step {step}/{self._total_steps}']
    if self._is_terminal:
      done = min(_BAR_WIDTH * step // self._total_steps, _BAR_WIDTH)
      parts.append('[' + '#' * done + '.' * (_BAR_WIDTH - done) + ']')
    parts += [f'{name} {_short(value)}' for name, value in values.items()]
    start_step, start = self._start
    if step > start_step:
      seconds_per_step = (now - start) / (step - start_step)
      left = max(self._total_steps - step, 0) * seconds_per_step
      parts.append(f'{_duration(left)} left')
    return '  '.join(parts)


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
