"""Reports of a run: metric files, alarms, progress and the closing summary."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from abstractinator.config import RunConfig
from abstractinator.evaluation.held_out import Evaluation
from abstractinator.objective import metrics
from abstractinator.objective.by_level import level_prefix
from abstractinator.objective.metrics import Metrics, Summary
from abstractinator.training import health
from abstractinator.training.flops import DeviceMetrics, model_flops
from abstractinator.training.metric_writer import MetricWriter
from abstractinator.training.optimizer import make_schedule
from abstractinator.training.progress import Progress
from abstractinator.training.step_metrics import StepMetrics


class Reporter:
  """Reports of a run while it trains: files, console and alarms.

  Attributes:
    steps: Metrics and times of the steps since the last log line.
    writer: Writer of the metric files.
    progress: The progress line.
  """

  def __init__(
    self,
    config: RunConfig,
    workdir: str,
    step: int,
    total_steps: int,
    devices: Sequence[jax.Device],
    *,
    begun: dict[str, Any] | None,
    enabled: bool,
  ):
    """Opens the files.

    Args:
      config: Config of the run.
      workdir: Directory of the run.
      step: Optimizer steps done before this process began.
      total_steps: Number of optimizer steps of the run.
      devices: All devices of the run.
      begun: Metrics of steps since the last log line of an earlier process;
        see `StepMetrics`.
      enabled: Whether to report anything: true on one process of a run.
    """
    self._config, self._workdir = config, workdir
    self._schedule = make_schedule(config.optimizer, total_steps)
    self.writer = MetricWriter(workdir, step, enabled=enabled)
    self.progress = Progress(total_steps, step, enabled=enabled)
    self._alarms = health.AlarmLog(config, self.writer, self.progress.message)
    self._devices = DeviceMetrics(
      devices, functools.partial(model_flops, config)
    )
    self.steps = StepMetrics(begun)

  def add(self, step: int, fetched: Metrics) -> None:
    """Adds the metrics of a step and shows its progress.

    Args:
      step: Number of the step.
      fetched: Metrics of the step, still on the device.

    Raises:
      FloatingPointError: If a loss or the gradient norm is not finite.
    """
    values = jax.device_get(fetched)
    self._alarms.require_finite(step, values, self._workdir)
    self.steps.add(values)
    self.progress.update(step, self.steps.shown())

  def log(self, step: int, summary: Summary) -> None:
    """Writes the metrics of the steps since the last log line.

    Args:
      step: Number of the last of these steps.
      summary: Summary of their metrics.
    """
    found = health.train_alarms(self._config, step, summary)
    tags = self._alarms.report(step, health.TRAIN_ALARMS, found)
    tags |= {f'train/{k}': v for k, v in summary.flattened().items()}
    tags['train/learning_rate'] = float(self._schedule(step - 1))
    tags |= {f'perf/{k}': v for k, v in self.steps.times().items()}
    tags |= self._devices.tags(self.steps.step_seconds())
    self.writer.write_scalars(step, tags)
    if self.steps.total is not None:
      histograms = metrics.histograms(self.steps.total).flattened()
      for name, counts in histograms.items():
        self.writer.write_histogram(step, f'train/{name}', counts)
    self.steps.restart()

  def evaluated(
    self, step: int, found: Evaluation, train: Summary
  ) -> dict[str, float]:
    """Writes held-out metrics and shows the most important ones.

    Args:
      step: Number of the step after which they were taken.
      found: The held-out metrics and examples.
      train: Summary of the metrics of the training steps before.

    Returns:
      The held-out metrics by their names in the metric files.
    """
    tags = {f'eval/{k}': v for k, v in found.summary.flattened().items()}
    self.writer.write_scalars(step, tags)
    for name, histogram in found.histograms.flattened().items():
      self.writer.write_histogram(step, f'eval/{name}', *histogram)
    if found.examples is not None:
      self.writer.write_text(step, 'eval/examples', found.examples)
    if found.picture is not None:
      self.writer.write_image(step, 'eval/segments', found.picture)
    self.progress.message(f'step {step}: {headline(found.summary)}')
    alarms = health.eval_alarms(self._config, step, found.summary, train)
    self.writer.write_scalars(
      step, self._alarms.report(step, health.EVAL_ALARMS, alarms)
    )
    return tags


def closing(
  workdir: str, objective: str, total_steps: int, summary: Summary | None
) -> str:
  """Returns what is printed at the end: the result and what can be done next.

  Args:
    workdir: Directory of the run.
    objective: Name of the run's objective.
    total_steps: Number of optimizer steps of the run.
    summary: Its last held-out metrics; None if it was done before.
  """
  lines = [f'run {workdir}: {total_steps} steps done']
  if summary:
    lines.append(f'held-out documents: {headline(summary)}')
  else:
    lines.append('nothing was left to do; --config.max_steps=N trains longer')
  uses = [
    f'  abstractinator reconstruct {workdir} FILE',
    f'  abstractinator segment {workdir} FILE',
  ]
  if objective == 'entropy_model':
    uses = [
      '  python train.py --config=CONFIG'
      " '--config.model.levels[0].freeze_entropy_model=True'"
      f" '--config.model.levels[0].load_entropy_model_from={workdir}'"
    ]
  return '\n'.join(
    [
      *lines,
      'next:',
      *uses,
      f'  tensorboard --logdir {workdir}/tensorboard'
      '  (pip install tensorboard)',
    ]
  )


def headline(summary: Summary) -> str:
  """Returns the most important held-out metrics, in a line."""
  levels, whole = summary.levels, summary.whole
  if not levels:
    bits, accuracy = (
      whole[f'top_lm_code_{x}'] for x in ('bits_per_code', 'accuracy')
    )
    return f'top LM {bits:.3f} bits/code, {accuracy:.1%} of codes right'
  if 'entropy_model_byte_accuracy' in levels[0]:
    bits = levels[0]['entropy_model_bits_per_byte']
    accuracy = levels[0]['entropy_model_byte_accuracy']
    return f'entropy model {bits:.3f} bits/byte, {accuracy:.1%} of bytes right'
  parts = [
    level_prefix(number, len(levels)).replace('/', ': ') + _of_level(of_level)
    for number, of_level in enumerate(levels)
  ]
  if 'top_lm_code_bits_per_byte' in whole:
    code, end = (
      whole[f'top_lm_{part}_bits_per_byte'] for part in ('code', 'end')
    )
    parts.append(f'codes {code + end:.3f} bits/byte under the top LM')
  if 'total_bits_per_byte' in whole:
    parts.append(f'{whole["total_bits_per_byte"]:.3f} bits/byte in total')
  if 'free_running_byte_accuracy' in whole:
    parts.append(f'{whole["free_running_byte_accuracy"]:.1%} free-running')
  return ('; ' if len(levels) > 1 else ', ').join(parts)


def _of_level(summary: dict[str, float]) -> str:
  """Returns the most important metrics of a level."""
  given_codes = summary['expander_bits_per_byte'] + summary['end_bits_per_byte']
  parts = [
    f'entropy model {summary["entropy_model_bits_per_byte"]:.3f} bits/byte',
    f'expander {given_codes:.3f} bits/byte given codes (ends'
    f' {summary["end_bits_per_byte"]:.3f} of them)',
    f'{summary["bytes_per_segment"]:.2f} bytes/segment',
    _live_codes(summary),
  ]
  for unit in ('byte', 'code'):
    name = f'teacher_forced_{unit}_accuracy'
    if name in summary:
      parts.append(f'{unit} accuracy {summary[name]:.1%} teacher-forced')
  return ', '.join(parts)


def _live_codes(summary: dict[str, float]) -> str:
  """Returns the live fraction of codes; of each stage if codes are too many."""
  name = 'live_code_fraction'
  if name in summary:
    return f'{summary[name]:.1%} of the codes live'
  live = [f'{v:.1%}' for k, v in summary.items() if k.endswith(f'/{name}')]
  return f'{" and ".join(live)} of the codes of each stage live'
