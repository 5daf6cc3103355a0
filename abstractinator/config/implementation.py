"""Settings of what computes the ops."""

import dataclasses
from typing import Literal, Self

from abstractinator.config.section import Section


@dataclasses.dataclass(frozen=True)
class ImplementationConfig(Section):
  """Of each op; `ops.implementation` says which platform takes which."""

  attention: Literal[
    'auto', 'reference', 'xla', 'pallas', 'pallas_interpret', 'cudnn', 'splash'
  ]
  segment_pool: Literal[
    'auto',
    'reference',
    'xla',
    'xla_deterministic',
    'pallas',
    'pallas_interpret',
  ]
  segment_cross: Literal['auto', 'reference', 'gather', 'halo']
  nearest_code: Literal['auto', 'reference', 'xla']

  @classmethod
  def everywhere(cls, name: Literal['auto', 'reference', 'xla']) -> Self:
    """All ops by the same, cross-attention by 'gather' for 'xla'."""
    return cls(name, name, 'gather' if name == 'xla' else name, name)
