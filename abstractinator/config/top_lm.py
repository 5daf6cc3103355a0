"""Settings of the language model over the codes of the last level."""

import dataclasses
from typing import Literal

from abstractinator.config.attention import StackConfig, require_heads
from abstractinator.config.section import Section


@dataclasses.dataclass(frozen=True)
class TopLMConfig(Section):
  """A `CodeSequenceTransformer`: its mode, width and stack."""

  mode: Literal['discrete', 'continuous']
  d_model: int
  stack: StackConfig
  expand: bool

  def __post_init__(self) -> None:
    self.require_positive('d_model')
    require_heads(self, 'stack', self.d_model)
