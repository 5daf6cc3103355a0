"""What stands on the stack of an entropy model."""

import dataclasses
from typing import Literal

from abstractinator.config.section import Section, require

Source = Literal['logit', 'gaussian']


@dataclasses.dataclass(frozen=True)
class EntropyHeadsConfig(Section):
  """Heads of an entropy model, and the entropy that cuts segments."""

  tie_to_embedding: bool
  gaussian_components: int
  gaussian_layers: int
  gaussian_detach: bool
  gaussian_log_variance_min: float
  gaussian_log_variance_max: float
  source: Source
  temperature: float
  top_k: int
  top_p: float

  def __post_init__(self):
    # Below, float32 has no room for what it divides.
    low = self.temperature >= 1e-6
    require(low, 'temperature', self.temperature, '>= 1e-6')
    for name in ('gaussian_components', 'gaussian_layers', 'top_k'):
      require(getattr(self, name) >= 0, name, getattr(self, name), '>= 0')
    require(
      self.gaussian_layers == 0 or self.gaussian_components > 0,
      'gaussian_layers',
      self.gaussian_layers,
      '0 while gaussian_components is 0',
    )
    for name in ('gaussian_log_variance_min', 'gaussian_log_variance_max'):
      require(
        abs(getattr(self, name)) <= 40, name, getattr(self, name), '-40 to 40'
      )
    require(0 < self.top_p <= 1, 'top_p', self.top_p, '0 < value <= 1')
    require(
      self.gaussian_log_variance_min < self.gaussian_log_variance_max,
      'gaussian_log_variance_min',
      self.gaussian_log_variance_min,
      f'below gaussian_log_variance_max ({self.gaussian_log_variance_max})',
    )
    if self.source == 'gaussian':
      require(
        self.gaussian_components > 0,
        'source',
        self.source,
        'logit, or gaussian_components above 0',
      )
      require(self.top_k == 0, 'top_k', self.top_k, '0 with source gaussian')
      require(self.top_p == 1, 'top_p', self.top_p, '1 with source gaussian')
