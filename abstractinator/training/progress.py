"""The progress of a run, for whoever watches the console."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

_BAR_WIDTH = 24
# A terminal line need not be redrawn more often than an eye follows.
_TERMINAL_INTERVAL_SECONDS = 0.1


class Progress:
  """Shows step, values and time left.

  On a terminal it is one line with a bar, rewritten in place; otherwise (log
  files of a cluster) one plain line every few seconds.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    stream: TextIO | None = None,
    interval_seconds: float = 5.0,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_steps: Optimizer steps of the whole run.
      start_step: Steps done before this process began.
      stream: Where to write, standard error by default.
      interval_seconds: Least time between two plain lines.
      enabled: Whether to show anything: true on one process of a run.
      clock: Seconds since whenever.
    """
    self._enabled = enabled
    self._total_steps = total_steps
    self._stream = sys.stderr if stream is None else stream
    self._is_terminal = self._stream.isatty()
    self._interval_seconds = (
      _TERMINAL_INTERVAL_SECONDS if self._is_terminal else interval_seconds
    )
    self._clock = clock
    self._start = (start_step, clock())
    self._is_first = True
    self._last_shown = -math.inf
    self._line = ''
    self._is_line_shown = True

  def update(self, step: int, values: Mapping[str, float]) -> None:
    """Takes note of a step and shows it if it is time to.

    Args:
      step: Optimizer steps done, those before a resumption included.
      values: What to show beside it, in this order: loss, bytes/s, and so on.
    """
    if not self._enabled:
      return
    now = self._clock()
    if self._is_first:
      # The first steps hold the compilation: from here on the rate is
      # measured without them.
      self._start = (step, now)
      self._is_first = False
    self._line = self._format(step, values, now)
    self._is_line_shown = False
    is_last = step >= self._total_steps
    if is_last or now - self._last_shown >= self._interval_seconds:
      self._last_shown = now
      self._show()

  def message(self, text: str) -> None:
    """Prints a line of its own, above the bar."""
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
  """Four significant digits, with k, M, G or T for large numbers."""
  for suffix in ('', 'k', 'M', 'G'):
    # Numbers that would round up to 1000 belong to the next suffix.
    if not abs(value) >= 999.95:
      return f'{value:#.4g}{suffix}'
    value /= 1000
  return f'{value:#.4g}T'


def _duration(seconds: float) -> str:
  """Hours, minutes and seconds."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}h{minutes:02}m'
  return f'{minutes}m{seconds:02}s' if minutes else f'{seconds}s'
