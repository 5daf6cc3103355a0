"""Settings of what computes the ops and layers."""

import dataclasses
from typing import Literal, Self

from abstractinator.config.section import Section


@dataclasses.dataclass(frozen=True)
class ImplementationConfig(Section):
  """Of each op; `ops.implementation` says which platform takes which.

  And how stacks of blocks are run: `remat`, what they keep for the backward
  pass, and `scan_layers`, whether as a loop.
  """

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
  remat: Literal['none', 'dots', 'blocks']
  scan_layers: bool

  @classmethod
  def everywhere(cls, name: Literal['auto', 'reference', 'xla']) -> Self:
    """All ops by the same, cross-attention by 'gather' for 'xla'."""
    cross = 'gather' if name == 'xla' else name
    return cls(name, name, cross, name, remat='none', scan_layers=False)
