"""What computes the ops and layers, on which platform."""

import dataclasses
import functools
from typing import Self

from absl import logging

from abstractinator.ops.attention import support as attention
from abstractinator.ops.nearest_code import support as nearest_code
from abstractinator.ops.segment_cross import support as segment_cross
from abstractinator.ops.segment_pool import support as segment_pool
from abstractinator.ops.support import PLATFORMS

# Of each op: what it can be computed by, and on which platforms.
_SUPPORTS = {
  'attention': attention.SUPPORT,
  'segment_pool': segment_pool.SUPPORT,
  'segment_cross': segment_cross.SUPPORT,
  'nearest_code': nearest_code.SUPPORT,
}

# What 'auto' stands for: of each op, by platform.
_AUTO = {
  'attention': {'cpu': 'xla', 'gpu': 'pallas', 'tpu': 'pallas'},
  'segment_pool': {'cpu': 'xla', 'gpu': 'xla', 'tpu': 'pallas'},
  'segment_cross': {'cpu': 'gather', 'gpu': 'gather', 'tpu': 'halo'},
  'nearest_code': {'cpu': 'xla', 'gpu': 'xla', 'tpu': 'xla'},
}

# Of ops that have a kernel for each platform: those are one setting.
_SETTINGS = {'pallas_triton': 'pallas', 'pallas_tpu': 'pallas'}


@dataclasses.dataclass(frozen=True)
class Implementations:
  """What computes each op, as the ops themselves name it, and layers.

  Attributes:
    attention: See `ops.attention`.
    segment_pool: See `ops.segment_pool`.
    segment_cross: See `ops.segment_cross`.
    nearest_code: See `ops.nearest_code`.
    remat: What blocks keep for the backward pass: 'none' for all that it reads,
      'dots' for matrix products, 'blocks' for their inputs only.
    scan_layers: Whether the blocks of a stack are compiled once, as a loop.
  """

  attention: str
  segment_pool: str
  segment_cross: str
  nearest_code: str
  remat: str = 'none'
  scan_layers: bool = False

  @classmethod
  def everywhere(cls, name: str) -> Self:
    """All ops by 'reference' or 'xla', which is 'gather' to one of them."""
    return cls(name, name, 'gather' if name == 'xla' else name, name)

  def __str__(self) -> str:
    fields = {
      name: value
      for name, value in dataclasses.asdict(self).items()
      if value not in ('none', False)
    }
    return ', '.join(f'{name} {value}' for name, value in fields.items())


@functools.cache
def resolve_implementations(
  attention: str,
  segment_pool: str,
  segment_cross: str,
  nearest_code: str,
  platform: str,
  remat: str = 'none',
  scan_layers: bool = False,
) -> Implementations:
  """Turns the settings `model.implementation` into what the ops take.

  The choice is logged the first time it is asked for.

  Args:
    attention: 'auto', or a name of `ops.attention.support`, less the platform
      of a kernel; likewise the others.
    segment_pool: Likewise.
    segment_cross: Likewise.
    nearest_code: Likewise.
    platform: 'cpu', 'gpu' or 'tpu', of the mesh that the ops will run on.
    remat: See `Implementations`.
    scan_layers: Likewise.

  Returns:
    The implementations.

  Raises:
    ValueError: If the platform is unknown, or cannot take a setting.
  """
  if platform not in PLATFORMS:
    raise ValueError(
      f'platform: got {platform!r}, allowed: {", ".join(PLATFORMS)}'
    )
  settings = dict(
    attention=attention,
    segment_pool=segment_pool,
    segment_cross=segment_cross,
    nearest_code=nearest_code,
  )
  resolved = Implementations(
    **{op: _resolve(op, name, platform) for op, name in settings.items()},
    remat=remat,
    scan_layers=scan_layers,
  )
  logging.info('implementations on %s: %s', platform, resolved)
  return resolved


def _resolve(op: str, setting: str, platform: str) -> str:
  taken = {
    _SETTINGS.get(name, name): name
    for name, support in _SUPPORTS[op].items()
    if platform in support.platforms
  }
  if setting == 'auto':
    setting = _AUTO[op][platform]
  elif setting not in taken:
    raise ValueError(
      f'model.implementation.{op}: got {setting!r}, allowed on {platform}:'
      f' auto, {", ".join(taken)}'
    )
  return taken[setting]
