"""Which implementation of the ops a platform gets."""

import dataclasses
import functools
from typing import Self

from absl import logging

_PLATFORMS = ('cpu', 'gpu', 'tpu')
_ANYWHERE = dict.fromkeys(('reference', 'xla', 'pallas_interpret'), _PLATFORMS)

# Of each op: settings, and the platforms that can take them.
_TAKEN = {
  'attention': {
    **_ANYWHERE,
    'pallas': ('gpu', 'tpu'),
    'cudnn': ('gpu',),
    'splash': ('tpu',),
  },
  'segment_pool': {
    **_ANYWHERE,
    'xla_deterministic': _PLATFORMS,
    'pallas': ('tpu',),
  },
  'segment_cross': dict.fromkeys(('reference', 'gather', 'halo'), _PLATFORMS),
  'nearest_code': dict.fromkeys(('reference', 'xla'), _PLATFORMS),
}

# What 'auto' stands for: of each op, by platform.
_AUTO = {
  'attention': {'cpu': 'xla', 'gpu': 'pallas', 'tpu': 'pallas'},
  'segment_pool': {'cpu': 'xla', 'gpu': 'xla', 'tpu': 'pallas'},
  'segment_cross': {'cpu': 'gather', 'gpu': 'gather', 'tpu': 'halo'},
  'nearest_code': {'cpu': 'xla', 'gpu': 'xla', 'tpu': 'xla'},
}

# Ops that have one kernel for each platform: what 'pallas' is called there.
_KERNELS = {'attention': {'gpu': 'pallas_triton', 'tpu': 'pallas_tpu'}}


@dataclasses.dataclass(frozen=True)
class Implementations:
  """What computes each op, as the ops themselves name it.

  Attributes:
    attention: See `ops.attention`.
    segment_pool: See `ops.segment_pool`.
    segment_cross: See `ops.segment_cross`.
    nearest_code: See `ops.nearest_code`.
  """

  attention: str
  segment_pool: str
  segment_cross: str
  nearest_code: str

  @classmethod
  def everywhere(cls, name: str) -> Self:
    """All ops by 'reference' or 'xla', which is 'gather' to one of them."""
    return cls(name, name, 'gather' if name == 'xla' else name, name)

  def __str__(self) -> str:
    fields = dataclasses.asdict(self).items()
    return ', '.join(f'{op} {name}' for op, name in fields)


@functools.cache
def resolve_implementations(
  attention: str,
  segment_pool: str,
  segment_cross: str,
  nearest_code: str,
  platform: str,
) -> Implementations:
  """Turns the settings `model.implementation` into what the ops take.

  The choice is logged the first time it is asked for.

  Args:
    attention: A setting, 'auto' or a name in `_TAKEN`; likewise the others.
    segment_pool: Likewise.
    segment_cross: Likewise.
    nearest_code: Likewise.
    platform: 'cpu', 'gpu' or 'tpu', of the mesh that the ops will run on.

  Returns:
    The implementations.

  Raises:
    ValueError: If the platform is unknown, or cannot take a setting.
  """
  if platform not in _PLATFORMS:
    raise ValueError(
      f'platform: got {platform!r}, allowed: {", ".join(_PLATFORMS)}'
    )
  settings = dict(
    attention=attention,
    segment_pool=segment_pool,
    segment_cross=segment_cross,
    nearest_code=nearest_code,
  )
  resolved = Implementations(
    **{op: _resolve(op, name, platform) for op, name in settings.items()}
  )
  logging.info('implementations on %s: %s', platform, resolved)
  return resolved


def _resolve(op: str, name: str, platform: str) -> str:
  taken = [n for n, platforms in _TAKEN[op].items() if platform in platforms]
  if name == 'auto':
    name = _AUTO[op][platform]
  elif name not in taken:
    raise ValueError(
      f'model.implementation.{op}: got {name!r}, allowed on {platform}: auto,'
      f' {", ".join(taken)}'
    )
  if name == 'pallas':
    name = _KERNELS.get(op, {}).get(platform, name)
  return name
