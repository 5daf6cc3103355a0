"""Metrics and times of the training steps since the last log line."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from abstractinator.objective import metrics
from abstractinator.objective.metrics import Metrics, Summary
from abstractinator.types import Mean

# Labels on the progress line, for a run of one level: what matters most, and
# what only a wide terminal has room for.
_FIRST_OF_ONE_LEVEL = {
  'entropy_model_bits_per_byte': 'entropy bpb',
  'expander_bits_per_byte': 'expander bpb',
}
_LAST_OF_ONE_LEVEL = {
  'bytes_per_segment': 'bytes/seg',
  'live_code_fraction': 'live',
}
# More levels would not fit in a line.
_MAX_SHOWN_LEVELS = 2


class StepMetrics:
  """Sums of the metrics of steps, and the time that training took.

  Evaluation and checkpoints interrupt training; their time is kept apart.

  Attributes:
    total: Metrics of all steps so far, on the host; None before the first step.
  """

  def __init__(
    self,
    begun: dict[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      begun: JSON values of steps of an earlier process, from `to_json`.
      clock: Returns the time, seconds since any moment.
    """
    self._clock = clock
    self._last_shown: dict[str, float] | None = None
    self._has_started = False
    self.total: Metrics | None
    self._clear()
    if begun:
      self.total = Metrics(
        tuple(map(_from_json, begun['levels'])), _from_json(begun['whole'])
      )

  def to_json(self) -> dict[str, Any]:
    """Returns the metrics so far as JSON values, exactly."""
    if self.total is None:
      return {}
    levels = [_to_json(of_level) for of_level in self.total.levels]
    return {'levels': levels, 'whole': _to_json(self.total.whole)}

  def _clear(self) -> None:
    self.total = None
    self._seconds = 0.0
    self._num_steps = 0
    self._untimed_bytes = 0.0
    self._input_seconds = 0.0
    self._apart: dict[str, float] = {}
    self._since: float | None = self._clock()

  def restart(self) -> None:
    """Forgets all steps and starts the clock anew."""
    self._last_shown = self._current()
    self._clear()

  def pause(self) -> None:
    """Stops the clock, for what is not training."""
    self._seconds = self._elapsed()
    self._since = None

  def resume(self) -> None:
    """Starts the clock again."""
    self._since = self._clock()

  @contextlib.contextmanager
  def input(self) -> Iterator[None]:
    """Counts the time inside the context as waiting for a batch."""
    start = self._clock()
    yield
    self._input_seconds += self._clock() - start

  @contextlib.contextmanager
  def apart(self, name: str) -> Iterator[None]:
    """Counts the time inside the context apart, while the clock is stopped.

    Args:
      name: Name of what is done, 'eval' or 'checkpoint'.
    """
    start = self._clock()
    yield
    seconds = self._clock() - start
    self._apart[name] = self._apart.get(name, 0.0) + seconds

  def add(self, step_metrics: Metrics) -> None:
    """Adds the metrics of a step, on the host."""
    self.total = metrics.merge(self.total, step_metrics)
    if not self._has_started:
      # The first step includes the compilation; time starts after it.
      self._has_started = True
      self._untimed_bytes = metrics.num_bytes(self.total)
      self._seconds, self._since = 0.0, self._clock()
      self._input_seconds = 0.0
    else:
      self._num_steps += 1

  def _elapsed(self) -> float:
    if self._since is None:
      return self._seconds
    return self._seconds + self._clock() - self._since

  def summary(self) -> Summary:
    """Returns the means so far; see `metrics.summarize`."""
    return Summary() if self.total is None else metrics.summarize(self.total)

  def step_seconds(self) -> float | None:
    """Returns the mean seconds of a step, without the first step of a process.

    It is None if there is no other step.
    """
    return self._elapsed() / self._num_steps if self._num_steps else None

  def times(self) -> dict[str, float]:
    """Returns seconds by name: of a step, of waiting for data, kept apart.

    `bytes_per_second` is there, too. All but those kept apart need a step, and
    the first one of a process, which includes the compilation, does not count.
    """
    times = {f'{name}_seconds': value for name, value in self._apart.items()}
    if self.total is not None and self._num_steps:
      elapsed = max(self._elapsed(), 1e-9)
      num_bytes = metrics.num_bytes(self.total) - self._untimed_bytes
      times['step_seconds'] = elapsed / self._num_steps
      times['input_wait_seconds'] = self._input_seconds / self._num_steps
      times['input_wait_fraction'] = self._input_seconds / elapsed
      times['bytes_per_second'] = num_bytes / elapsed
    return times

  def shown(self) -> dict[str, float]:
    """Returns the values of the progress line by label.

    They are those of the last log line, or before the first one the current
    values.
    """
    return self._last_shown or self._current()

  def _current(self) -> dict[str, float]:
    summary = self.summary()
    levels, whole = summary.levels, summary.whole
    times = self.times()
    places = [
      ('loss', whole, 'loss_total'),
      ('total bpb', whole, 'total_bits_per_byte'),
    ]
    last = [('codes bpb', whole, 'top_lm_code_bits_per_byte')]
    if len(levels) == 1:
      places += [(x, levels[0], k) for k, x in _FIRST_OF_ONE_LEVEL.items()]
      last += [(x, levels[0], k) for k, x in _LAST_OF_ONE_LEVEL.items()]
    else:
      places += [
        (f'expander bpb {number}', of_level, 'expander_bits_per_byte')
        for number, of_level in enumerate(levels[:_MAX_SHOWN_LEVELS])
      ]
    return _found([*places, ('bytes/s', times, 'bytes_per_second'), *last])


def _found(
  places: list[tuple[str, dict[str, float], str]],
) -> dict[str, float]:
  """Returns values by label, those that are there."""
  return {
    label: values[name] for label, values, name in places if name in values
  }


def _to_json(metrics: dict[str, Mean]) -> dict[str, Any]:
  return {
    name: [np.asarray(x).tolist() for x in (mean.total, mean.count)]
    for name, mean in metrics.items()
  }


def _from_json(values: dict[str, Any]) -> dict[str, Mean]:
  return {name: Mean(*map(_array, numbers)) for name, numbers in values.items()}


def _array(numbers: Any) -> Any:
  """Returns a number or a list of numbers as an array on the host."""
  return np.asarray(numbers, np.float32)
