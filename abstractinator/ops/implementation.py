"""Choice of the implementation of each op, by setting and platform."""

import dataclasses
import functools

from absl import logging

from abstractinator.config import ImplementationConfig
from abstractinator.ops import nearest_code
from abstractinator.ops.attention import api as attention
from abstractinator.ops.segment_cross import api as segment_cross
from abstractinator.ops.segment_pool import api as segment_pool
from abstractinator.ops.support import PLATFORMS, Implementation

OPS: dict[str, dict[str, Implementation]] = {
  'attention': attention.IMPLEMENTATIONS,
  'segment_pool': segment_pool.IMPLEMENTATIONS,
  'segment_cross': segment_cross.IMPLEMENTATIONS,
  'nearest_code': nearest_code.IMPLEMENTATIONS,
}

# The setting that 'auto' stands for, by op and platform.
_AUTO = {
  'attention': {'cpu': 'xla', 'gpu': 'pallas', 'tpu': 'pallas'},
  'segment_pool': {'cpu': 'xla', 'gpu': 'xla', 'tpu': 'pallas'},
  'segment_cross': {'cpu': 'gather', 'gpu': 'gather', 'tpu': 'halo'},
  'nearest_code': {'cpu': 'xla', 'gpu': 'xla', 'tpu': 'xla'},
}

# One setting names the kernel of whichever platform the op runs on.
_SETTINGS = {'pallas_triton': 'pallas', 'pallas_tpu': 'pallas'}


@dataclasses.dataclass(frozen=True)
class Implementations:
  """Implementation of each op, a key of its table in `OPS`; and of stacks.

  Attributes:
    attention: Implementation of self-attention.
    segment_pool: Implementation of segment pooling.
    segment_cross: Implementation of segment cross-attention.
    nearest_code: Implementation of code search.
    remat: Arrays that a block keeps for its backward pass: 'none' for all that
      it reads, 'dots' for results of matrix products, 'blocks' for its inputs.
    scan_layers: Whether the blocks of a stack are compiled once, as a loop.
  """

  attention: str
  segment_pool: str
  segment_cross: str
  nearest_code: str
  remat: str
  scan_layers: bool

  def __str__(self) -> str:
    return ', '.join(
      f'{name} {value}'
      for name, value in dataclasses.asdict(self).items()
      if value not in ('none', False)
    )


@functools.cache
def resolve_implementations(
  settings: ImplementationConfig, platform: str
) -> Implementations:
  """Returns the implementations that the settings name on a platform.

  The choice is logged the first time it is asked for.

  Args:
    settings: For each op 'auto', or a key of its table in `OPS`, where 'pallas'
      stands for both 'pallas_tpu' and 'pallas_triton'.
    platform: 'cpu', 'gpu' or 'tpu', that of the mesh the ops will run on.

  Raises:
    ValueError: If the platform is unknown, or has no such implementation.
  """
  if platform not in PLATFORMS:
    raise ValueError(
      f'platform: got {platform!r}, allowed: {", ".join(PLATFORMS)}'
    )
  ops = {op: _resolve(op, getattr(settings, op), platform) for op in OPS}
  resolved = Implementations(
    **ops, remat=settings.remat, scan_layers=settings.scan_layers
  )
  logging.info('implementations on %s: %s', platform, resolved)
  return resolved


def _resolve(op: str, setting: str, platform: str) -> str:
  taken = {
    _SETTINGS.get(name, name): name
    for name, implementation in OPS[op].items()
    if platform in implementation.platforms
  }
  if setting == 'auto':
    setting = _AUTO[op][platform]
  elif setting not in taken:
    raise ValueError(
      f'model.implementation.{op}: got {setting!r}, allowed on {platform}:'
      f' auto, {", ".join(taken)}'
    )
  return taken[setting]
