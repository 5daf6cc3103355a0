"""Settings of the language model over the top codes."""

import dataclasses
from typing import Literal

from abstractinator.config.attention import StackConfig, require_heads
from abstractinator.config.section import Section, require_positive

Mode = Literal['discrete', 'continuous']


@dataclasses.dataclass(frozen=True)
class TopLMConfig(Section):
  """A `CodeSequenceTransformer`: what it predicts, its width, its stack."""

  mode: Mode
  d_model: int
  stack: StackConfig
  expand: bool

  def __post_init__(self):
    require_positive(self, 'd_model')
    require_heads(
      'stack', self.stack.num_heads, self.d_model, self.stack.attention
    )
