"""Settings of the heads of an entropy model."""

import dataclasses
from typing import Literal

from abstractinator.config.section import Section

EntropySource = Literal['logit', 'gaussian']


@dataclasses.dataclass(frozen=True)
class EntropyHeadsConfig(Section):
  """Heads of an entropy model, and the entropy that the segmentation reads."""

  tie_to_embedding: bool
  gaussian_components: int
  gaussian_layers: int
  gaussian_detach: bool
  gaussian_log_variance_min: float
  gaussian_log_variance_max: float
  source: EntropySource
  temperature: float
  top_k: int
  top_p: float

  def __post_init__(self) -> None:
    # Logits divided by a smaller temperature overflow float32.
    self.require(self.temperature >= 1e-6, 'temperature', '>= 1e-6')
    self.require_non_negative('gaussian_components', 'gaussian_layers', 'top_k')
    self.require(
      self.gaussian_layers == 0 or self.gaussian_components > 0,
      'gaussian_layers',
      '0 while gaussian_components is 0',
    )
    low, high = 'gaussian_log_variance_min', 'gaussian_log_variance_max'
    for name in (low, high):
      self.require(abs(getattr(self, name)) <= 40, name, '-40 to 40')
    self.require(0 < self.top_p <= 1, 'top_p', '0 < value <= 1')
    self.require(
      self.gaussian_log_variance_min < self.gaussian_log_variance_max,
      low,
      f'below {high} ({self.gaussian_log_variance_max})',
    )
    if self.source == 'gaussian':
      self.require(
        self.gaussian_components > 0,
        'source',
        "'logit' while gaussian_components is 0",
      )
      self.require(self.top_k == 0, 'top_k', "0 with source 'gaussian'")
      self.require(self.top_p == 1, 'top_p', "1 with source 'gaussian'")
