"""Reports of a run: metric files, alarms, progress and the closing summary."""

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from abstractinator.config import RunConfig
from abstractinator.evaluation import units
from abstractinator.evaluation.held_out import Evaluation
from abstractinator.objective import metrics
from abstractinator.objective.metrics import Metrics, Summary
from abstractinator.runs import checkpoint
from abstractinator.runs import workdir as workdirs
from abstractinator.training import health
from abstractinator.training.flops import DeviceMetrics, model_flops
from abstractinator.training.metric_writer import MetricWriter
from abstractinator.training.optimizer import make_schedule
from abstractinator.training.progress import Progress
from abstractinator.training.step_metrics import StepMetrics
from abstractinator.types import NUM_BYTES


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
    batches_after: Callable[[int], int],
    enabled: bool,
  ):
    """Opens the files.

    Args:
      config: Config of the run.
      workdir: Directory of the run.
      step: Latest step whose metrics an earlier process has written.
      total_steps: Number of optimizer steps of the run.
      devices: All devices of the run.
      begun: Metrics of steps since the last log line of an earlier process;
        see `StepMetrics`.
      batches_after: Function from a step to the number of batches of all
        evaluations after that step.
      enabled: Whether to report anything: true on one process of a run.
    """
    self._config = config
    self._schedule = make_schedule(config.optimizer, total_steps)
    self.writer = MetricWriter(workdir, step, enabled=enabled)
    self.progress = Progress(total_steps, batches_after, enabled=enabled)
    self._alarms = health.AlarmLog(config, self.writer, self.progress.message)
    self._devices = DeviceMetrics(
      devices, functools.partial(model_flops, config)
    )
    self.steps = StepMetrics(begun)
    self._has_layout = False
    self.writer.write_settings(workdirs.flat(config.to_dict()))

  def pause(self) -> None:
    """Stops the clocks, for what is not training."""
    self.steps.pause()
    self.progress.pause()

  def resume(self) -> None:
    """Starts the clocks again."""
    self.steps.resume()
    self.progress.resume()

  def add(self, step: int, fetched: Metrics) -> None:
    """Adds the metrics of a step and shows its progress.

    Args:
      step: Number of the step.
      fetched: Metrics of the step, still on the device.

    Raises:
      FloatingPointError: If a loss or the gradient norm is not finite.
    """
    values = jax.device_get(fetched)
    self._alarms.require_finite(step, values)
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
    self.writer.flush()
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
    if not self._has_layout:
      self.writer.write_layout(tags)
      self._has_layout = True
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
    self.writer.flush()
    return tags


def command() -> str:
  """Returns the command of a user that trains: `train.py` or the program's."""
  started = sys.argv[0]
  if os.path.basename(started) == 'train.py':
    return f'python {shlex.quote(started)}'
  return 'abstractinator train'


def after_divergence(workdir: str, config: RunConfig) -> str:
  """Returns what to do after a loss that is not finite.

  Args:
    workdir: Directory of the run.
    config: Config of the run.
  """
  steps = checkpoint.all_steps(workdir)
  rate = f'{config.optimizer.learning_rate / 2:g}'
  new = f'--workdir=NEW --config.optimizer.learning_rate={rate}'
  if len(steps) < 2:
    return (
      'there is no earlier checkpoint; start anew with another setting:'
      f' {command()} --config=resume:{workdir} {new}'
    )
  return (
    f'from the latest checkpoint, {steps[-1]}, the same step fails again; go on'
    f' from an earlier one with another setting: {command()}'
    f' --resume_from={workdir} --resume_step={steps[-2]} {new}'
  )


def after_fault(workdir: str) -> str:
  """Returns where a run goes on after its disk or its data failed it."""
  step = checkpoint.latest_step(workdir)
  if step is None:
    return 'there is no checkpoint yet: the same command starts anew'
  return (
    f'the latest whole checkpoint is {workdir}/checkpoints/{step}: the same'
    ' command goes on from there'
  )


def closing(
  workdir: str, config: RunConfig, total_steps: int, summary: Summary | None
) -> str:
  """Returns what is printed at the end: the result and what can be done next.

  Args:
    workdir: Directory of the run.
    config: Config of the run.
    total_steps: Number of optimizer steps of the run.
    summary: Its last held-out metrics; None if it was done before.
  """
  lines = [f'run {workdir}: {total_steps} steps done']
  if summary is None:
    lines.append('nothing was left to do; --config.max_steps=N trains longer')
  else:
    lines.append('on held-out documents:')
    lines += units.table(units.figures(summary.flattened()), indent='  ')
  commands = next_commands(workdir, config)
  tensorboard = f'tensorboard --logdir={workdir}/tensorboard'
  commands[tensorboard] = 'curves (pip install tensorboard)'
  lines.append('next:')
  for use, about in commands.items():
    lines += [f'  # {about}', f'    {use}']
  return '\n'.join(lines)


def next_commands(workdir: str, config: RunConfig) -> dict[str, str]:
  """Returns the commands that a model is ready for, each with its purpose.

  Args:
    workdir: Directory of the model, or what stands for it.
    config: Config of its run.
  """
  uses: dict[str, str] = {}
  if config.objective == 'entropy_model':
    level = '--config.model.levels[0]'
    uses = {
      f"train --config=CONFIG '{level}.freeze_entropy_model=True'"
      f" '{level}.load_entropy_model_from={workdir}'": 'codes on this model'
    }
  elif config.data.vocab_size == NUM_BYTES:
    # Without a top LM, the last code would repeat.
    only = '' if config.model.top_lm else ' --entropy_model_only'
    uses = {
      f'view {workdir} FILE --html=page.html': 'segments and codes of a text',
      f'reconstruct {workdir} FILE': 'a text, from its codes alone',
      f"generate {workdir} --prompt='TEXT'{only}": 'a continuation of a text',
    }
  return {f'abstractinator {use}': about for use, about in uses.items()}


def headline(summary: Summary) -> str:
  """Returns the figures that matter most while a run trains, in a line."""
  unit = ' bits/byte' if summary.levels else ' bits/code'
  found = units.figures(summary.flattened())
  costs = [
    f'{re.split(", | of ", label)[0]} {value.removesuffix(unit)}'
    for label, value in found.items()
    if value.endswith(unit)
  ]
  rest = [f'{value} right' for k, value in found.items() if ' right' in k]
  return ', '.join([', '.join(costs[:3]) + unit, *rest[:1]])
