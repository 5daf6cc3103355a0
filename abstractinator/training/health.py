"""Alarms of a run: signs that it may be going wrong, with what to try."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from abstractinator.config import LevelConfig, RunConfig
from abstractinator.objective.by_level import level_prefix
from abstractinator.objective.metrics import Metrics, Summary
from abstractinator.training.metric_writer import MetricWriter
from abstractinator.types import Mean

# Least perplexity of codes, as a fraction of all codes; it is at least 2 codes.
MIN_CODE_FRACTION = 0.02
# Least rise of the bits per byte when codes are shuffled, as a fraction of the
# bits per byte given the true codes.
MIN_CODE_GAP = 0.02
MAX_OVERFLOW_FRACTION = 0.05
# Least ids of a segment, and most as a fraction of `max_length`.
MIN_SEGMENT_IDS, MAX_SEGMENT_PART = 1.1, 0.95
# Most norm of the gradients, over the norm to which they are clipped.
MAX_GRADIENT_FACTOR = 50.0
# A uniform guess of a byte costs 8 bits; a model that needs more has diverged.
MAX_BITS_PER_BYTE = 10.0
# Most bits per byte of held-out text over those of training, as a ratio; they
# have to differ by at least as many bits, too.
MAX_DRIFT, MIN_DRIFT_BITS = 1.25, 0.2

TRAIN_ALARMS = (
  'codebook_collapse',
  'overflow',
  'segments_of_one_id',
  'segments_of_max_length',
  'exploding_gradients',
)
EVAL_ALARMS = ('codes_ignored', 'validation_drift')
# Alarms of the whole run; all others are of a level.
_OF_RUN = ('exploding_gradients', 'validation_drift')


@dataclasses.dataclass(frozen=True)
class Alarm:
  """Something that may be wrong.

  Attributes:
    tag: Name of the alarm in the metric files, after 'health/'.
    message: Description of what was measured, and settings to try.
  """

  tag: str
  message: str


def alarm_tags(config: RunConfig, names: tuple[str, ...]) -> list[str]:
  """Returns every tag that alarms of these names can have.

  Args:
    config: Config of the run.
    names: Names from `TRAIN_ALARMS` or `EVAL_ALARMS`.
  """
  num_levels = len(config.model.levels)
  levels = [level_prefix(number, num_levels) for number in range(num_levels)]
  return [
    prefix + name
    for name in names
    for prefix in ([''] if name in _OF_RUN else levels)
  ]


def train_alarms(config: RunConfig, step: int, train: Summary) -> list[Alarm]:
  """Judges the metrics of some training steps.

  Args:
    config: Config of the run.
    step: Number of the last of these steps.
    train: Summary of their metrics.

  Returns:
    Alarms; none before step `health.after_steps`, which for a level counts
    from the step in which a curriculum lets it learn.
  """
  if step < config.health.after_steps:
    return []
  found = _exploding(config, train)
  levels = config.model.levels
  below: tuple[float, int] | None = None
  for number, (level, of_level) in enumerate(
    zip(levels, train.levels, strict=False)
  ):
    size = of_level.get('bytes_per_segment')
    if size is None:
      continue
    # A level above reads `num_queries` ids for each segment of the one below.
    ids = size if below is None else size / max(below[0], 1e-9) * below[1]
    below = size, level.pooling.num_queries
    if _is_judged(config, number, step):
      prefix = level_prefix(number, len(levels))
      found += [
        Alarm(prefix + alarm.tag, alarm.message)
        for alarm in _level_alarms(level, of_level, ids)
      ]
  return found


def eval_alarms(
  config: RunConfig, step: int, held_out: Summary, train: Summary
) -> list[Alarm]:
  """Judges the metrics of held-out text.

  Args:
    config: Config of the run.
    step: Number of the step after which they were taken.
    held_out: Summary of the held-out metrics.
    train: Summary of the metrics of the training steps before.

  Returns:
    Alarms; none before step `health.after_steps`, as in `train_alarms`.
  """
  if step < config.health.after_steps:
    return []
  found = []
  for number, of_level in enumerate(held_out.levels):
    true, shuffled = (
      of_level.get(f'expander_bits_per_byte_{kind}_codes')
      for kind in ('true', 'shuffled')
    )
    if not _is_judged(config, number, step) or true is None or shuffled is None:
      continue
    if shuffled - true < MIN_CODE_GAP * true:
      prefix = level_prefix(number, len(held_out.levels))
      found.append(
        Alarm(
          f'{prefix}codes_ignored',
          f'the expander needs {true:.3f} bits/byte given the codes and'
          f' {shuffled:.3f} given those of other segments: it ignores them; try'
          " expander.context='segment', expander.byte_dropout above 0, fewer"
          ' expander.num_layers, a larger quantizer.codebook_size',
        )
      )
  return found + _drift(config, held_out, train)


def _is_judged(config: RunConfig, level: int, step: int) -> bool:
  """Returns whether a level has learned for `health.after_steps` steps."""
  joins = level * config.loss.curriculum_steps
  return step >= joins + config.health.after_steps


def _level_alarms(
  level: LevelConfig, train: Mapping[str, float], ids: float
) -> Iterator[Alarm]:
  """Judges the metrics of a level whose segments have `ids` ids on average."""
  c, sizes = level.segmentation, level.quantizer.stage_sizes
  counted = {'': math.prod(sizes)}
  if level.quantizer.kind == 'dictionary':
    counted = {}  # Its use is that of the text.
  if len(sizes) > 1:
    # A few steps see only a part of the combinations of several stages.
    counted = {f'stage{number}/': size for number, size in enumerate(sizes)}
  for stage, size in counted.items():
    perplexity = train.get(f'{stage}codebook_perplexity', math.inf)
    if size > 2 and perplexity < max(MIN_CODE_FRACTION * size, 2.0):
      yield Alarm(
        'codebook_collapse',
        f'{stage.replace("/", ": ")}{perplexity:.1f} of {size} codes are in'
        ' effective use (codebook_perplexity); try quantizer.start="kmeans", a'
        ' smaller quantizer.reset_interval_steps or reset_after_steps,'
        ' quantizer.reset_usage above 0, a smaller codebook_size',
      )
      break
  fraction = train.get('overflow_fraction', 0.0)
  if fraction > MAX_OVERFLOW_FRACTION:
    yield Alarm(
      'overflow',
      f'{fraction:.1%} of ids are cut every max_length ids because slots ran'
      ' short; try a smaller segmentation.capacity_length (now'
      f' {c.capacity_length}) or a larger target_length',
    )
  if c.max_length > 1 and ids < MIN_SEGMENT_IDS:
    yield Alarm(
      'segments_of_one_id',
      f'a segment has {ids:.2f} ids; try a segmentation.target_length, a larger'
      f' segmentation.threshold (now {c.threshold}) or min_length',
    )
  if c.max_length > c.min_length and ids > MAX_SEGMENT_PART * c.max_length:
    yield Alarm(
      'segments_of_max_length',
      f'a segment has {ids:.2f} ids of at most {c.max_length}; try a'
      ' segmentation.target_length, a smaller segmentation.threshold (now'
      f' {c.threshold}) or capacity_length, another rule',
    )


def _exploding(config: RunConfig, train: Summary) -> list[Alarm]:
  """Judges the norm of the gradients and the bits per byte."""
  norm = train.whole.get('gradient_norm', 0.0)
  limit = MAX_GRADIENT_FACTOR * config.optimizer.clip_norm
  bits = [
    of_level[name]
    for of_level in train.levels[:1]
    for name in ('entropy_model_bits_per_byte', 'expander_bits_per_byte')
    if name in of_level
  ]
  if norm <= limit and max(bits, default=0.0) <= MAX_BITS_PER_BYTE:
    return []
  return [
    Alarm(
      'exploding_gradients',
      f'the gradients have a norm of {norm:.3g} (optimizer.clip_norm is'
      f' {config.optimizer.clip_norm:g}) and a byte costs up to'
      f' {max(bits, default=math.nan):.3g} bits; try a smaller'
      ' optimizer.learning_rate, more optimizer.warmup_steps',
    )
  ]


def _drift(config: RunConfig, held_out: Summary, train: Summary) -> list[Alarm]:
  """Compares the bits per byte of held-out text with those of training."""
  first = level_prefix(0, len(held_out.levels))
  there, here = held_out.flattened(), train.flattened()
  names = ['total_bits_per_byte', f'{first}entropy_model_bits_per_byte']
  # Held-out text has more segments that are not in a dictionary: more to spell.
  if config.model.levels[0].quantizer.kind != 'dictionary':
    names.append(f'{first}expander_bits_per_byte')
  for name in names:
    bits, trained = there.get(name, 0.0), here.get(name, math.inf)
    if bits > MAX_DRIFT * trained and bits > trained + MIN_DRIFT_BITS:
      return [
        Alarm(
          'validation_drift',
          f'{name}: {bits:.3f} on held-out text, {trained:.3f} in training; try'
          ' more data.train, fewer num_epochs, a larger optimizer.weight_decay,'
          ' expander.byte_dropout, a smaller model; or held-out text of the'
          ' same kind',
        )
      ]
  return []


class AlarmLog:
  """Log of the alarms of a run: reports each as it begins and as it ends."""

  def __init__(
    self,
    config: RunConfig,
    writer: MetricWriter,
    tell: Callable[[str], None],
  ):
    """Starts without an active alarm.

    Args:
      config: Config of the run; with `health.alarms` off no alarm is reported.
      writer: Writer of the run's metrics.
      tell: Prints a line to the console.
    """
    self._config = config
    self._writer, self._tell = writer, tell
    self._active: set[str] = set()

  def report(
    self, step: int, names: tuple[str, ...], found: Sequence[Alarm]
  ) -> dict[str, float]:
    """Reports the alarms that begin and those that end.

    Args:
      step: Number of the step.
      names: Names of the alarms that were looked for: `TRAIN_ALARMS` or
        `EVAL_ALARMS`.
      found: Alarms of these names that were found.

    Returns:
      1 for each active alarm and 0 for each other, by name in the metric files.
    """
    if not self._config.health.alarms:
      return {}
    raised = {alarm.tag for alarm in found}
    for alarm in found:
      if alarm.tag not in self._active:
        self._tell(f'step {step}: ALARM {alarm.tag}: {alarm.message}')
        self._write(step, alarm)
    tags = alarm_tags(self._config, names)
    for tag in tags:
      if tag in self._active - raised:
        self._tell(f'step {step}: {tag} is over')
        self._writer.write_text(step, f'health/{tag}', f'{tag} is over')
    self._active = (self._active - set(tags)) | raised
    return {f'health/{tag}': float(tag in raised) for tag in tags}

  def require_finite(self, step: int, values: Metrics) -> None:
    """Checks that all losses and the gradient norm are finite.

    If one is not, that is written down even with `health.alarms` off.

    Args:
      step: Number of the step.
      values: Metrics of the step, on the host.

    Raises:
      FloatingPointError: If a loss or the gradient norm is not finite.
    """
    for name, mean in values.apply(_watched).flattened().items():
      if np.isfinite(mean.total):
        continue
      alarm = Alarm(
        'non_finite',
        f'{name} is {float(mean.total)}; try a smaller optimizer.learning_rate'
        ' or optimizer.clip_norm, more optimizer.warmup_steps, model.dtype'
        ' float32',
      )
      self._writer.write_scalars(step, {f'health/{alarm.tag}': 1.0})
      self._write(step, alarm)
      raise FloatingPointError(f'step {step}: {alarm.message}; stopped')

  def _write(self, step: int, alarm: Alarm) -> None:
    text = f'**{alarm.tag}**: {alarm.message}'
    self._writer.write_text(step, f'health/{alarm.tag}', text)


def _watched(metrics: dict[str, Mean]) -> dict[str, Mean]:
  """Returns the metrics that have to be finite: losses, the gradient norm."""
  return {
    name: mean
    for name, mean in metrics.items()
    if name.startswith('loss_') or name == 'gradient_norm'
  }
