"""Settings of the optimizer."""

import dataclasses
from typing import Literal

from abstractinator.config.section import Section


@dataclasses.dataclass(frozen=True)
class LearningRatesConfig(Section):
  """Factors on the learning rate, one for each part of a model."""

  entropy_model: float
  compressor: float
  expander: float
  top_lm: float

  def __post_init__(self) -> None:
    self.require_positive(*(f.name for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
  """The optimizer and the schedule of its learning rate."""

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

  def __post_init__(self) -> None:
    self.require_positive('learning_rate', 'clip_norm')
    self.require_fraction('beta1', 'beta2', 'ema_decay')
    for name in ('final_fraction', 'decay_fraction'):
      self.require(0 <= getattr(self, name) <= 1, name, '0 to 1')
    self.require_non_negative('warmup_steps', 'weight_decay')
