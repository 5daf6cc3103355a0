"""Settings of the optimizer."""

import dataclasses
from typing import Literal

from abstractinator.config.section import (
  Section,
  require,
  require_fraction,
  require_positive,
)


@dataclasses.dataclass(frozen=True)
class LearningRatesConfig(Section):
  """Learning rates of the parts of a model, relative to that of the run."""

  entropy_model: float
  compressor: float
  expander: float
  top_lm: float

  def __post_init__(self):
    require_positive(self, *(f.name for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
  """How parameters follow their gradient; see `configs/default.py`."""

  kind: Literal['adamw', 'muon']
  schedule: Literal['cosine', 'warmup_stable_decay', 'constant']
  learning_rate: float
  final_fraction: float
  warmup_steps: int
  decay_fraction: float
  relative_rates: LearningRatesConfig
  weight_decay: float
  beta1: float
  beta2: float
  clip_norm: float
  ema_decay: float

  def __post_init__(self):
    require_positive(self, 'learning_rate', 'clip_norm')
    require_fraction(self, 'beta1', 'beta2', 'ema_decay')
    for name in ('final_fraction', 'decay_fraction'):
      value = getattr(self, name)
      require(0 <= value <= 1, name, value, '0 to 1')
    for name in ('warmup_steps', 'weight_decay'):
      require(getattr(self, name) >= 0, name, getattr(self, name), '>= 0')
