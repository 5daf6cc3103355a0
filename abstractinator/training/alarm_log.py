"""Alarms of a run, in its log and its metrics."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from abstractinator.config import RunConfig
from abstractinator.training import health
from abstractinator.training.health import Alarm
from abstractinator.training.metric_writer import MetricWriter
from abstractinator.types import Mean


class AlarmLog:
  """Tells alarms where a run is watched, as they begin and as they end."""

  def __init__(
    self,
    config: RunConfig,
    writer: MetricWriter,
    tell: Callable[[str], None],
  ):
    """Nothing is wrong yet.

    Args:
      config: Of the run; with `health.alarms` off nothing is ever told.
      writer: Of its metrics.
      tell: Takes lines of the log.
    """
    self._config = config
    self._writer, self._tell = writer, tell
    self._active: set[str] = set()

  def train(self, step: int, summary: Mapping[str, float]) -> dict[str, float]:
    """Looks at steps of training; `health/*`, 1 for an alarm and else 0."""
    if not self._config.health.alarms:
      return {}
    found = health.train_alarms(self._config, step, summary)
    return self._take(step, health.TRAIN_ALARMS, found)

  def held_out(
    self,
    step: int,
    summary: Mapping[str, float],
    train: Mapping[str, float],
  ) -> dict[str, float]:
    """Looks at held-out metrics, as `train`."""
    if not self._config.health.alarms:
      return {}
    found = health.eval_alarms(self._config, step, summary, train)
    return self._take(step, health.EVAL_ALARMS, found)

  def require_finite(
    self, step: int, values: Mapping[str, Mean], workdir: str
  ) -> None:
    """Raises FloatingPointError if a loss, or the gradient, is not finite.

    What a run ends with is written down, whatever the config says.

    Args:
      step: Of the run.
      values: Fetched metrics of the step.
      workdir: Of the run, for the message.
    """
    terms = [name for name in values if re.search(r'(^|/)loss_', name)]
    for name in [*terms, 'gradient_norm']:
      if np.isfinite(values[name].total):
        continue
      alarm = health.non_finite(name, float(values[name].total))
      self._writer.write_scalars(step, {f'health/{alarm.tag}': 1.0})
      self._write(step, alarm)
      raise FloatingPointError(
        f'step {step}: {alarm.message}; stopped. The latest checkpoint lies in'
        f' {workdir}/checkpoints'
      )

  def _write(self, step: int, alarm: Alarm) -> None:
    text = f'**{alarm.tag}**: {alarm.message}'
    self._writer.write_text(step, f'health/{alarm.tag}', text)

  def _take(
    self, step: int, names: tuple[str, ...], found: Sequence[Alarm]
  ) -> dict[str, float]:
    raised = {alarm.tag for alarm in found}
    for alarm in found:
      if alarm.tag not in self._active:
        self._tell(f'step {step}: ALARM {alarm.tag}: {alarm.message}')
        self._write(step, alarm)
    tags = health.tags(self._config, names)
    for tag in tags:
      if tag in self._active - raised:
        self._tell(f'step {step}: {tag} is over')
        self._writer.write_text(step, f'health/{tag}', f'{tag} is over')
    self._active = (self._active - set(tags)) | raised
    return {f'health/{tag}': float(tag in raised) for tag in tags}
