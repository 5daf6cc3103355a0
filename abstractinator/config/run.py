"""Settings of a whole run: data, model, objective, optimizer and devices."""

import dataclasses
import importlib.metadata
import re
from typing import Annotated, Any, Literal, Self

from abstractinator.config.model import ModelConfig
from abstractinator.config.section import (
  Fraction,
  Limit,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  PositiveOrNone,
  Section,
  non_negative,
  positive,
  positive_float,
)

_VERSION = importlib.metadata.version('abstractinator')
_IS_VERSION = re.compile(r'[\w.+-]{1,40}', re.ASCII)
# Equal to `types.NUM_BYTES`, whose import of jax would slow down every command
# that reads a config.
_NUM_BYTES = 256
# Positions in a batch are int32.
_MAX_BATCH_IDS = 2**31 - 1
_MAX_ROW_IDS = 2**24
_Share = Annotated[float, Limit(lambda x: 0 <= x <= 1, '0 to 1')]
_AxisSize = Annotated[
  int, Limit(lambda x: 0 < x < 2**31 or x == -1, 'a positive number or -1')
]


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  """The documents of a run, and how they become batches."""

  train: str
  validation: str
  validation_fraction: Fraction
  vocab_size: Annotated[int, positive(2**24)]
  packing: bool
  sequence_length: Annotated[int, positive(_MAX_ROW_IDS)]
  batch_size: PositiveInt
  read_threads: Annotated[int, non_negative(1024)]
  prefetch_batches: Annotated[int, positive(1024)]

  def check(self) -> None:
    self.require(
      bool(self.validation) or self.validation_fraction > 0,
      'validation_fraction',
      'above 0 while data.validation is empty',
    )
    self.require(
      bool(self.train) or self.vocab_size == _NUM_BYTES,
      'vocab_size',
      f'{_NUM_BYTES} while data.train is empty',
    )
    most = _MAX_BATCH_IDS // self.sequence_length
    self.require(
      self.batch_size <= most,
      'batch_size',
      f'at most {most} rows of {self.sequence_length} ids',
    )


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
  """Weights of the terms of the objective, and when each level learns."""

  entropy_model: NonNegativeFloat
  gaussian: NonNegativeFloat
  expander: NonNegativeFloat
  end: NonNegativeFloat
  commitment: NonNegativeFloat
  rate: NonNegativeFloat
  rate_warmup_steps: NonNegativeInt
  codebook: NonNegativeFloat
  top_lm_code: NonNegativeFloat
  top_lm_vector: NonNegativeFloat
  top_lm_end: NonNegativeFloat
  top_lm_expander: NonNegativeFloat
  curriculum_steps: NonNegativeInt
  curriculum_stops: bool

  def check(self) -> None:
    self.require(
      self.curriculum_steps > 0 or not self.curriculum_stops,
      'curriculum_stops',
      'False while curriculum_steps is 0',
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
  """Number of devices along each mesh axis; -1 on one axis: all that remain."""

  data: _AxisSize
  fsdp: _AxisSize
  tensor: _AxisSize

  def check(self) -> None:
    num_open = dataclasses.astuple(self).count(-1)
    self.require(num_open <= 1, 'tensor', '-1 on one axis only')


@dataclasses.dataclass(frozen=True)
class HealthConfig(Section):
  """Alarms about a run that may be going wrong."""

  alarms: bool
  after_steps: NonNegativeInt


@dataclasses.dataclass(frozen=True)
class LearningRatesConfig(Section):
  """Factors on the learning rate, one for each part of a model."""

  entropy_model: PositiveFloat
  compressor: PositiveFloat
  expander: PositiveFloat
  top_lm: PositiveFloat


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
  """The optimizer and the schedule of its learning rate."""

  kind: Literal['adamw', 'muon']
  schedule: Literal['cosine', 'warmup_stable_decay', 'constant']
  learning_rate: Annotated[float, positive_float(1e3)]
  final_fraction: _Share
  warmup_steps: NonNegativeInt
  decay_fraction: _Share
  relative_rates: LearningRatesConfig
  weight_decay: NonNegativeFloat
  beta1: Fraction
  beta2: Fraction
  clip_norm: PositiveFloat
  ema_decay: Fraction


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
  """All settings of a run."""

  seed: Annotated[int, Limit(lambda x: 0 <= x < 2**32, '0 to 2^32 - 1')]
  objective: Literal['all', 'entropy_model', 'top_lm']
  load_base_from: str | None
  max_steps: PositiveOrNone
  num_epochs: PositiveFloat
  log_interval: PositiveInt
  eval_interval: PositiveInt
  eval_batches: PositiveInt
  final_eval_batches: PositiveOrNone
  checkpoint_interval: PositiveInt
  max_to_keep: PositiveInt
  microbatches: PositiveInt
  data: DataConfig
  model: ModelConfig
  loss: LossConfig
  optimizer: OptimizerConfig
  mesh: MeshConfig
  health: HealthConfig

  def check(self) -> None:
    self._check_lengths()
    self._check_levels()
    self._check_frozen_levels()
    self._check_objective()

  def stored(self) -> dict[str, Any]:
    """Returns what a run stores: `to_dict`, and the version that wrote it."""
    return {'version': _VERSION, **self.to_dict()}

  @classmethod
  def from_stored(cls, values: Any, source: str) -> Self:
    """Builds a config from what `stored` returned.

    Raises:
      ValueError: If a setting is missing, unknown or not allowed; the message
        begins with `source`, the path that the values were read from, and names
        the version that reads them if that is another one.
    """
    version = _VERSION
    if isinstance(values, dict):
      values = dict(values)
      version = values.pop('version', _VERSION)
    try:
      return cls.from_dict(values)
    except ValueError as error:
      hint = ''
      is_version = isinstance(version, str) and _IS_VERSION.fullmatch(version)
      if is_version and version != _VERSION:
        hint = f'; install abstractinator {version}, which wrote it'
      raise ValueError(f'{source}: {error}{hint}') from None

  def _check_lengths(self) -> None:
    rows = self.data.batch_size
    self.require(
      rows % self.microbatches == 0,
      'microbatches',
      f'a divisor of data.batch_size ({rows})',
    )
    # A resumed run then logs the same steps as a run that was not interrupted.
    self.require(
      self.checkpoint_interval % self.log_interval == 0,
      'checkpoint_interval',
      f'a multiple of log_interval ({self.log_interval})',
    )

  def _check_levels(self) -> None:
    levels = self.model.levels
    self.require(
      levels[0].segmentation.rule != 'space'
      or self.data.vocab_size == _NUM_BYTES,
      'model.levels[0].segmentation.rule',
      f"any but 'space' while data.vocab_size is not {_NUM_BYTES}",
    )
    sizes = self.model.sequence_lengths(self.data.sequence_length)
    for i, (level, size) in enumerate(zip(levels, sizes, strict=True)):
      num_codes = level.num_codes(size)
      self.require(
        num_codes <= _MAX_ROW_IDS,
        f'model.levels[{i}].pooling.num_queries',
        f'fewer: rows have {num_codes} codes, of at most {_MAX_ROW_IDS}',
      )
      self.require(
        level.max_documents(size) >= 1,
        f'model.levels[{i}].segmentation.capacity_length',
        f'smaller, so that rows of {size} ids have a slot to spare',
      )
      self.require(
        self.loss.gaussian > 0 or level.entropy_heads.source != 'gaussian',
        'loss.gaussian',
        f"above 0 while model.levels[{i}].entropy_heads.source is 'gaussian'",
      )
      self.require(
        self.loss.codebook > 0 or level.quantizer.codebook != 'gradient',
        'loss.codebook',
        f"above 0 while model.levels[{i}].quantizer.codebook is 'gradient'",
      )
    self.require(
      self.loss.gaussian == 0
      or any(level.entropy_heads.gaussian_components for level in levels),
      'loss.gaussian',
      '0 while entropy_heads.gaussian_components of all model.levels is 0',
    )

  def _check_frozen_levels(self) -> None:
    freeze = self.model.levels[0].freeze
    self.require(
      self.load_base_from is None or freeze,
      'load_base_from',
      'None while model.levels[0].freeze is False',
    )
    self.require(
      not self.loss.curriculum_steps or not freeze,
      'loss.curriculum_steps',
      '0 while model.levels[0].freeze is True',
    )

  def _check_objective(self) -> None:
    levels, top_lm = self.model.levels, self.model.top_lm
    if self.objective == 'entropy_model':
      self.require(
        len(levels) == 1
        and top_lm is None
        and not levels[0].freeze_entropy_model,
        'objective',
        "'all' with several model.levels, a model.top_lm or a frozen entropy"
        ' model',
      )
    if self.objective == 'top_lm':
      # This objective reads codes from files: its levels compute nothing.
      self.require(
        top_lm is not None
        and top_lm.mode == 'discrete'
        and not top_lm.expand
        and not self.model.streams
        and levels[-1].freeze,
        'objective',
        "'all' without frozen model.levels and a model.top_lm of mode"
        " 'discrete' that has expand False, inputs 'codes', base 'none' and no"
        " expander.conditioning 'top_lm'",
      )
      self.require(bool(self.data.train), 'data.train', 'a directory of codes')
