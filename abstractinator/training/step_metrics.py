"""Metrics of the steps since the last log line."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from abstractinator.objective import metrics
from abstractinator.types import Mean

_SHOWN = {
  'loss_total': 'loss',
  'entropy_model_bits_per_byte': 'entropy bpb',
  'expander_bits_per_byte': 'expander bpb',
  'bytes_per_segment': 'bytes/seg',
  'live_code_fraction': 'live',
}
# Of several levels. Not all of them, for they have to fit in a line.
_SHOWN_OF_SEVERAL = {
  'level0/expander_bits_per_byte': 'expander bpb 0',
  'level1/expander_bits_per_byte': 'expander bpb 1',
  'top_lm_code_bits_per_byte': 'codes bpb',
  'total_bits_per_byte': 'total bpb',
}


class Window:
  """Sums metrics and the time that training took, without what interrupts it.

  Attributes:
    total: Metrics so far, numpy.
  """

  def __init__(self, begun: dict[str, Any] | None = None):
    """Begins a window now.

    Args:
      begun: From `to_json`: what an earlier process had in it.
    """
    self._last_shown: dict[str, float] | None = None
    self._has_started = False
    self._clear()
    for name, sums in (begun or {}).items():
      self.total[name] = Mean(*(np.asarray(x, np.float32) for x in sums))

  def to_json(self) -> dict[str, Any]:
    """The metrics so far, exactly."""
    return {
      name: [np.asarray(x).tolist() for x in jax.tree.leaves(mean)]
      for name, mean in self.total.items()
    }

  def _clear(self) -> None:
    self.total: dict[str, Mean] = {}
    self._seconds = 0.0
    self._num_steps = 0
    self._untimed_bytes = 0.0
    self._input_seconds = 0.0
    self._apart: dict[str, float] = {}
    self._since: float | None = time.monotonic()

  def restart(self) -> None:
    """Begins an empty window now."""
    self._last_shown = self._current()
    self._clear()

  def pause(self) -> None:
    """Stops the clock: what follows is no training."""
    self._seconds = self._elapsed()
    self._since = None

  def resume(self) -> None:
    """Starts the clock again."""
    self._since = time.monotonic()

  @contextlib.contextmanager
  def input(self) -> Iterator[None]:
    """Counts what is done under it as waiting for a batch."""
    start = time.monotonic()
    yield
    self._input_seconds += time.monotonic() - start

  @contextlib.contextmanager
  def apart(self, name: str) -> Iterator[None]:
    """Counts what is done under it, while the clock stands, under a name."""
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    self._apart[name] = self._apart.get(name, 0.0) + seconds

  def add(self, step_metrics: metrics.Metrics) -> None:
    """Adds the fetched metrics of a step."""
    self.total = metrics.merge(self.total or None, step_metrics)
    if not self._has_started:
      # The first step holds the compilation; time begins after it.
      self._has_started = True
      self._untimed_bytes = self._num_bytes()
      self._seconds, self._since = 0.0, time.monotonic()
      self._input_seconds = 0.0
    else:
      self._num_steps += 1

  def _num_bytes(self) -> float:
    return metrics.num_bytes(self.total)

  def _elapsed(self) -> float:
    if self._since is None:
      return self._seconds
    return self._seconds + time.monotonic() - self._since

  def summary(self) -> dict[str, float]:
    """See `metrics.summarize`."""
    return metrics.summarize(self.total)

  def bytes_per_second(self) -> float:
    """Bytes trained on per second of training, the first step left out."""
    num_bytes = self._num_bytes() - self._untimed_bytes
    return num_bytes / max(self._elapsed(), 1e-9)

  def step_seconds(self) -> float | None:
    """Seconds of a step, the first one left out; None if there is no other."""
    return self._elapsed() / self._num_steps if self._num_steps else None

  def times(self) -> dict[str, float]:
    """Where time went: by step, and by what stood apart since the last."""
    times = {f'{name}_seconds': value for name, value in self._apart.items()}
    if self._num_steps:
      elapsed = max(self._elapsed(), 1e-9)
      times['step_seconds'] = elapsed / self._num_steps
      times['input_wait_seconds'] = self._input_seconds / self._num_steps
      times['input_wait_fraction'] = self._input_seconds / elapsed
    return times | {'bytes_per_second': self.bytes_per_second()}

  def shown(self) -> dict[str, float]:
    """What the progress line shows: the last whole window, the first as is."""
    return self._last_shown or self._current()

  def _current(self) -> dict[str, float]:
    summary = self.summary()
    return {
      **{
        label: summary[name]
        for name, label in (_SHOWN | _SHOWN_OF_SEVERAL).items()
        if name in summary
      },
      'bytes/s': self.bytes_per_second(),
    }
