"""Alarms of a run, in its log and its metrics."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from abstractinator.config import LevelConfig, RunConfig
from abstractinator.training.metric_writer import MetricWriter
from abstractinator.types import Mean

# Codes that carry what is said, over those that there are; but two at least.
MIN_CODE_FRACTION = 0.02
# What taking the codes away must cost, over what ids cost given them.
MIN_CODE_GAP = 0.02
MAX_OVERFLOW_FRACTION = 0.05
# Ids of a segment: of so few, and of such a part of `max_length`.
MIN_SEGMENT_IDS, MAX_SEGMENT_PART = 1.1, 0.95
# Norm of the gradients over the one to which they are clipped.
MAX_GRADIENT_FACTOR = 50.0
# Bits of a byte, of which a uniform guess takes 8: nothing is learned by more.
MAX_BITS_PER_BYTE = 10.0
# What held-out text costs over what the text of training costs, and bits by
# which it has to differ, too.
MAX_DRIFT, MIN_DRIFT_BITS = 1.25, 0.2

TRAIN_ALARMS = (
  'codebook_collapse',
  'overflow',
  'segments_of_one_id',
  'segments_of_max_length',
  'exploding_gradients',
)
EVAL_ALARMS = ('codes_ignored', 'validation_drift')
# Of the whole run, not of a level.
_OF_RUN = ('exploding_gradients', 'validation_drift')


@dataclasses.dataclass(frozen=True)
class Alarm:
  """Something that may be wrong.

  Attributes:
    tag: Name of the alarm after the prefix of its level, as of metrics.
    message: What was seen, and what to try.
  """

  tag: str
  message: str


def non_finite(name: str, value: float) -> Alarm:
  """Of a loss or gradient that is no number, with which a run ends."""
  return Alarm(
    'non_finite',
    f'{name} is {value}; try a smaller optimizer.learning_rate or'
    ' optimizer.clip_norm, more optimizer.warmup_steps, model.dtype float32',
  )


def alarm_tags(config: RunConfig, names: tuple[str, ...]) -> list[str]:
  """Every tag that alarms of these names can have."""
  levels = [prefix for prefix, *_ in _levels(config, None)]
  return [
    prefix + name
    for name in names
    for prefix in ([''] if name in _OF_RUN else levels)
  ]


def train_alarms(
  config: RunConfig, step: int, train: Mapping[str, float]
) -> list[Alarm]:
  """Looks at the metrics of some steps of training.

  Args:
    config: Of the run.
    step: The last of them.
    train: Their summary.

  Returns:
    What is wrong; nothing before `health.after_steps`, which a level counts
    from where a curriculum lets it learn.
  """
  if step < config.health.after_steps:
    return []
  found = list(_exploding(config, train))
  below: tuple[float, int] | None = None
  for prefix, level, is_judged in _levels(config, step):
    of_level = {
      name.removeprefix(prefix): value
      for name, value in train.items()
      if name.startswith(prefix)
    }
    size = of_level.get('bytes_per_segment')
    if size is None:
      continue
    # A level above reads so many ids for each segment of the one below.
    ids = size if below is None else size / max(below[0], 1e-9) * below[1]
    below = size, level.pooling.num_queries
    if is_judged:
      alarms = (
        *_collapse(level, of_level),
        *_overflow(level, of_level),
        *_degenerate(level, ids),
      )
      found += [Alarm(prefix + x.tag, x.message) for x in alarms]
  return found


def eval_alarms(
  config: RunConfig,
  step: int,
  held_out: Mapping[str, float],
  train: Mapping[str, float],
) -> list[Alarm]:
  """Looks at held-out metrics.

  Args:
    config: Of the run.
    step: When they were taken.
    held_out: Their summary.
    train: That of the steps before.

  Returns:
    As `train_alarms`.
  """
  if step < config.health.after_steps:
    return []
  found = []
  for prefix, _, is_judged in _levels(config, step):
    true, shuffled = (
      held_out.get(f'{prefix}expander_bits_per_byte_{kind}_codes')
      for kind in ('true', 'shuffled')
    )
    if not is_judged or true is None or shuffled is None:
      continue
    if shuffled - true < MIN_CODE_GAP * true:
      found.append(
        Alarm(
          f'{prefix}codes_ignored',
          f'the expander needs {true:.3f} bits/byte given the codes and'
          f' {shuffled:.3f} given those of other segments: it ignores them; try'
          " expander.context='segment', expander.byte_dropout above 0, fewer"
          ' expander.num_layers, a larger quantizer.codebook_size',
        )
      )
  return found + list(_drift(held_out, train))


def _levels(
  config: RunConfig, step: int | None
) -> Iterator[tuple[str, LevelConfig, bool]]:
  """Prefix of each level, its config, and whether it has learned for long."""
  levels = config.model.levels
  for number, level in enumerate(levels):
    prefix = f'level{number}/' if len(levels) > 1 else ''
    joins = number * config.loss.curriculum_steps
    is_judged = step is None or step >= joins + config.health.after_steps
    yield prefix, level, is_judged


def _collapse(level: LevelConfig, train: Mapping[str, float]):
  sizes = level.quantizer.stage_sizes
  counted = {'': math.prod(sizes)}
  if len(sizes) > 1:
    # Of all together a few steps see a part only.
    counted = {f'stage{number}/': size for number, size in enumerate(sizes)}
  for stage, size in counted.items():
    perplexity = train.get(f'{stage}codebook_perplexity')
    least = max(MIN_CODE_FRACTION * size, 2.0)
    if perplexity is not None and size > 2 and perplexity < least:
      yield Alarm(
        'codebook_collapse',
        f'{stage.replace("/", ": ")}{perplexity:.1f} of {size} codes carry what'
        ' is said (codebook_perplexity); try quantizer.start="kmeans", a'
        ' smaller quantizer.reset_interval_steps or reset_after_steps,'
        ' quantizer.reset_usage above 0, a smaller codebook_size',
      )
      return


def _overflow(level: LevelConfig, train: Mapping[str, float]):
  fraction = train.get('overflow_fraction', 0.0)
  if fraction > MAX_OVERFLOW_FRACTION:
    yield Alarm(
      'overflow',
      f'{fraction:.1%} of ids are cut every max_length ids, for want of slots;'
      ' try a smaller segmentation.capacity_length (now'
      f' {level.segmentation.capacity_length}) or a larger target_length',
    )


def _degenerate(level: LevelConfig, ids: float):
  c = level.segmentation
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


def _exploding(config: RunConfig, train: Mapping[str, float]):
  norm = train.get('gradient_norm', 0.0)
  limit = MAX_GRADIENT_FACTOR * config.optimizer.clip_norm
  bits = [
    value
    for name, value in train.items()
    if re.fullmatch(r'(level0/)?(entropy_model|expander)_bits_per_byte', name)
  ]
  if norm > limit or max(bits, default=0.0) > MAX_BITS_PER_BYTE:
    yield Alarm(
      'exploding_gradients',
      f'the gradients have a norm of {norm:.3g} (optimizer.clip_norm is'
      f' {config.optimizer.clip_norm:g}) and a byte costs up to'
      f' {max(bits, default=math.nan):.3g} bits; try a smaller'
      ' optimizer.learning_rate, more optimizer.warmup_steps',
    )


def _drift(held_out: Mapping[str, float], train: Mapping[str, float]):
  for name in ('total', 'entropy_model', 'expander'):
    pattern = rf'(level0/)?{name}_bits_per_byte'
    for key in filter(lambda x: re.fullmatch(pattern, x), held_out):
      there, here = held_out[key], train.get(key, math.inf)
      if there > MAX_DRIFT * here and there > here + MIN_DRIFT_BITS:
        yield Alarm(
          'validation_drift',
          f'{key}: {there:.3f} on held-out text, {here:.3f} in training; try'
          ' more data.train, fewer num_epochs, a larger optimizer.weight_decay,'
          ' expander.byte_dropout, a smaller model; or held-out text of the'
          ' same kind',
        )
        return


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
    found = train_alarms(self._config, step, summary)
    return self._take(step, TRAIN_ALARMS, found)

  def held_out(
    self,
    step: int,
    summary: Mapping[str, float],
    train: Mapping[str, float],
  ) -> dict[str, float]:
    """Looks at held-out metrics, as `train`."""
    if not self._config.health.alarms:
      return {}
    found = eval_alarms(self._config, step, summary, train)
    return self._take(step, EVAL_ALARMS, found)

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
      alarm = non_finite(name, float(values[name].total))
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
    tags = alarm_tags(self._config, names)
    for tag in tags:
      if tag in self._active - raised:
        self._tell(f'step {step}: {tag} is over')
        self._writer.write_text(step, f'health/{tag}', f'{tag} is over')
    self._active = (self._active - set(tags)) | raised
    return {f'health/{tag}': float(tag in raised) for tag in tags}
