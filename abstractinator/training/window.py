"""Metrics of the steps since the last log line."""

import time

from abstractinator import metrics
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

  def __init__(self):
    self._last_shown: dict[str, float] | None = None
    self._has_started = False
    self._clear()

  def _clear(self) -> None:
    self.total: dict[str, Mean] = {}
    self._seconds = 0.0
    self._untimed_bytes = 0.0
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

  def add(self, step_metrics: metrics.Metrics) -> None:
    """Adds the fetched metrics of a step."""
    self.total = metrics.merge(self.total or None, step_metrics)
    if not self._has_started:
      # The first step holds the compilation; time begins after it.
      self._has_started = True
      self._untimed_bytes = self._num_bytes()
      self._seconds, self._since = 0.0, time.monotonic()

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
