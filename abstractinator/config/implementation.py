"""Settings of the implementations that compute the ops and layers."""

import dataclasses
from typing import Literal, Self

from abstractinator.config.section import Section


@dataclasses.dataclass(frozen=True)
class ImplementationConfig(Section):
  """Implementation of each op, and the execution of stacks of blocks.

  `ops.implementation` says which platform supports which implementation.
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
    """Returns one implementation for all ops, and neither remat nor scan.

    Args:
      name: Implementation of each op; 'xla' is called 'gather' for
        `segment_cross`.
    """
    cross = 'gather' if name == 'xla' else name
    return cls(name, name, cross, name, remat='none', scan_layers=False)
