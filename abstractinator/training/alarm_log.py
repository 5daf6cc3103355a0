"""Alarms of a run, in its log and its metrics."""

from collections.abc import Callable, Mapping, Sequence

from abstractinator.config import RunConfig
from abstractinator.training import health
from abstractinator.training.health import Alarm
from abstractinator.training.metric_writer import MetricWriter


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

  def non_finite(self, step: int, name: str, value: float) -> str:
    """Writes down what a run ends with, whatever the config says.

    Args:
      step: Of it.
      name: Of the metric that is no number.
      value: Its value.

    Returns:
      What was seen, and what to try.
    """
    alarm = health.non_finite(name, value)
    self._writer.write_scalars(step, {f'health/{alarm.tag}': 1.0})
    self._write(step, alarm)
    return alarm.message

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
