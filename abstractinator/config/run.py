"""A whole run: its data, model, objective, optimizer and devices."""

import dataclasses
from typing import Literal

from abstractinator.config.model import ModelConfig
from abstractinator.config.optimizer import OptimizerConfig
from abstractinator.config.section import (
  Section,
  require,
  require_fraction,
  require_positive,
)

Objective = Literal['all', 'entropy_model', 'top_lm']


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  """What to read. See `configs/default.py` for units."""

  train: str
  validation: str
  validation_fraction: float
  vocab_size: int
  packing: bool
  sequence_length: int
  batch_size: int
  read_threads: int
  prefetch_batches: int

  def __post_init__(self):
    require_positive(
      self, 'vocab_size', 'sequence_length', 'batch_size', 'prefetch_batches'
    )
    require_fraction(self, 'validation_fraction')
    require(self.read_threads >= 0, 'read_threads', self.read_threads, '>= 0')
    require(
      bool(self.validation) or self.validation_fraction > 0,
      'validation_fraction',
      self.validation_fraction,
      'above 0 when data.validation is empty',
    )
    require(
      bool(self.train) or self.vocab_size == 256,
      'vocab_size',
      self.vocab_size,
      '256 while data.train is empty',
    )


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
  """Weights of the terms of the objective; see `losses.terms`."""

  entropy_model: float
  gaussian: float
  expander: float
  end: float
  commitment: float
  codebook: float
  top_lm_code: float
  top_lm_vector: float
  top_lm_end: float
  top_lm_expander: float
  curriculum_steps: int
  curriculum_stops: bool

  def __post_init__(self):
    for name, weight in dataclasses.asdict(self).items():
      require(weight >= 0, name, weight, '>= 0')
    require(
      self.curriculum_steps > 0 or not self.curriculum_stops,
      'curriculum_stops',
      self.curriculum_stops,
      'False while curriculum_steps is 0',
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
  """Devices along each mesh axis; -1 on one axis takes what is left."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      require(size > 0 or size == -1, name, size, 'a positive number or -1')
    one = list(sizes.values()).count(-1) <= 1
    require(one, 'tensor', self.tensor, '-1 on one axis')


@dataclasses.dataclass(frozen=True)
class HealthConfig(Section):
  """What is watched during training; see `training.health`."""

  alarms: bool
  after_steps: int

  def __post_init__(self):
    require(
      self.after_steps >= 0, 'after_steps', self.after_steps, '0 or above'
    )


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
  """A whole run."""

  seed: int
  objective: Objective
  load_base_from: str | None
  max_steps: int | None
  num_epochs: float
  log_interval: int
  eval_interval: int
  eval_batches: int
  final_eval_batches: int | None
  checkpoint_interval: int
  max_to_keep: int
  microbatches: int
  data: DataConfig
  model: ModelConfig
  loss: LossConfig
  optimizer: OptimizerConfig
  mesh: MeshConfig
  health: HealthConfig

  def __post_init__(self):
    require(self.seed >= 0, 'seed', self.seed, '>= 0')
    require_positive(
      self,
      'num_epochs',
      'log_interval',
      'eval_interval',
      'eval_batches',
      'checkpoint_interval',
      'max_to_keep',
      'microbatches',
    )
    rows = self.data.batch_size
    require(
      rows % self.microbatches == 0,
      'microbatches',
      self.microbatches,
      f'a divisor of data.batch_size ({rows})',
    )
    # So that a resumed run logs the same windows as one never stopped.
    require(
      self.checkpoint_interval % self.log_interval == 0,
      'checkpoint_interval',
      self.checkpoint_interval,
      f'a multiple of log_interval ({self.log_interval})',
    )
    rule = self.model.levels[0].segmentation.rule
    require(
      rule != 'space' or self.data.vocab_size == 256,
      'model.levels[0].segmentation.rule',
      rule,
      'a rule that is not about bytes, while data.vocab_size is not 256',
    )
    sizes = self.model.sequence_lengths(self.data.sequence_length)
    for i, (level, size) in enumerate(
      zip(self.model.levels, sizes, strict=True)
    ):
      require(
        level.max_documents(size) >= 1,
        f'model.levels[{i}].segmentation.capacity_length',
        level.segmentation.capacity_length,
        f'smaller, so that rows of {size} ids have a slot to spare',
      )
      require(
        self.loss.gaussian > 0 or level.entropy_heads.source != 'gaussian',
        'loss.gaussian',
        self.loss.gaussian,
        f"above 0 while model.levels[{i}].entropy_heads.source is 'gaussian'",
      )
      require(
        self.loss.codebook > 0 or level.quantizer.codebook != 'gradient',
        'loss.codebook',
        self.loss.codebook,
        f"above 0 while model.levels[{i}].quantizer.codebook is 'gradient'",
      )
    require(
      self.loss.gaussian == 0
      or any(c.entropy_heads.gaussian_components for c in self.model.levels),
      'loss.gaussian',
      self.loss.gaussian,
      '0 while entropy_heads.gaussian_components of all model.levels is 0',
    )
    for field in ('max_steps', 'final_eval_batches'):
      if getattr(self, field) is not None:
        require_positive(self, field)
    self._check_parts()

  def _check_parts(self):
    levels = self.model.levels
    require(
      self.load_base_from is None or levels[0].freeze,
      'load_base_from',
      self.load_base_from,
      'None while model.levels[0].freeze is False',
    )
    interval = self.loss.curriculum_steps
    last_joins = interval * (len(levels) - (self.model.top_lm is None))
    require(
      not interval or not levels[0].freeze,
      'loss.curriculum_steps',
      interval,
      '0 while model.levels[0].freeze is True',
    )
    require(
      self.max_steps is None or last_joins < self.max_steps,
      'loss.curriculum_steps',
      interval,
      f'so few that all learn before max_steps ({self.max_steps})',
    )
    if self.objective == 'top_lm':
      self._check_top_lm()
      return
    is_alone = len(levels) == 1 and self.model.top_lm is None
    require(
      self.objective == 'all'
      or (is_alone and not levels[0].freeze_entropy_model),
      'objective',
      self.objective,
      'all with several model.levels, a model.top_lm or a frozen entropy model',
    )

  def _check_top_lm(self):
    """Of a top LM that learns from codes, those of levels that stay."""
    top_lm = self.model.top_lm
    is_discrete = top_lm is not None and top_lm.mode == 'discrete'
    require(
      is_discrete and not top_lm.expand and self.model.levels[-1].freeze,
      'objective',
      self.objective,
      "'all' without a model.top_lm of mode 'discrete' that has expand False,"
      ' or with model.levels that are not frozen',
    )
    require(bool(self.data.train), 'data.train', '', 'a directory of codes')
