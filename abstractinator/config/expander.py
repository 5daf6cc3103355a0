"""Settings of the expander of a level."""

import dataclasses
from typing import Literal

from abstractinator.config.attention import AttentionConfig
from abstractinator.config.section import Section

ExpanderContext = Literal['segment', 'window', 'full']
SegmentEnds = Literal['head', 'entropy']
Distance = Literal['dot', 'squared']


@dataclasses.dataclass(frozen=True)
class ExpanderConfig(Section):
  """The autoregressive decoder of a level, from codes to ids."""

  num_layers: int
  num_heads: int
  ffn_dim: int
  context: ExpanderContext
  window: int
  lookback: int
  ends: SegmentEnds
  byte_dropout: float
  code_dim: int | None
  distance: Distance
  residual_conditioning: bool
  attention: AttentionConfig

  def __post_init__(self) -> None:
    self.require_positive(
      'num_layers', 'num_heads', 'ffn_dim', 'window', 'code_dim'
    )
    self.require_non_negative('lookback')
    self.require_fraction('byte_dropout')
    self.require(
      self.distance == 'dot' or self.code_dim is not None,
      'distance',
      "'dot' while code_dim is None",
    )
