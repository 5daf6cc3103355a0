"""Settings of the expander of a level."""

import dataclasses
from typing import Literal

from abstractinator.config.attention import AttentionConfig
from abstractinator.config.section import (
  Section,
  require,
  require_fraction,
  require_positive,
)

Context = Literal['segment', 'window', 'full']
Ends = Literal['head', 'entropy']
Distance = Literal['dot', 'squared']


@dataclasses.dataclass(frozen=True)
class ExpanderConfig(Section):
  """The autoregressive decoder of a level."""

  num_layers: int
  num_heads: int
  ffn_dim: int
  context: Context
  window: int
  lookback: int
  ends: Ends
  byte_dropout: float
  code_dim: int | None
  distance: Distance
  residual_conditioning: bool
  attention: AttentionConfig

  def __post_init__(self):
    require_positive(self, 'num_layers', 'num_heads', 'ffn_dim', 'window')
    require(self.lookback >= 0, 'lookback', self.lookback, '>= 0')
    require_fraction(self, 'byte_dropout')
    if self.code_dim is not None:
      require_positive(self, 'code_dim')
    require(
      self.distance == 'dot' or self.code_dim is not None,
      'distance',
      self.distance,
      "'dot' where code_dim is None",
    )
