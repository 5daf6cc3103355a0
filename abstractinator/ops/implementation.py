"""Choice of the implementation of each op, by setting and platform."""

import dataclasses
import functools
from typing import Self

from absl import logging

from abstractinator.ops.attention import support as attention_support
from abstractinator.ops.nearest_code import support as nearest_code_support
from abstractinator.ops.segment_cross import support as segment_cross_support
from abstractinator.ops.segment_pool import support as segment_pool_support
from abstractinator.ops.support import PLATFORMS

_SUPPORTS = {
  'attention': attention_support.SUPPORT,
  'segment_pool': segment_pool_support.SUPPORT,
  'segment_cross': segment_cross_support.SUPPORT,
  'nearest_code': nearest_code_support.SUPPORT,
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
  """Implementation of each op, and how stacks of blocks are run.

  Attributes:
    attention: Implementation of self-attention, a key of
      `ops.attention.support.SUPPORT`.
    segment_pool: Implementation of segment pooling, a key of
      `ops.segment_pool.support.SUPPORT`.
    segment_cross: Implementation of segment cross-attention, a key of
      `ops.segment_cross.support.SUPPORT`.
    nearest_code: Implementation of code search, a key of
      `ops.nearest_code.support.SUPPORT`.
    remat: Arrays that a block keeps for its backward pass: 'none' for all that
      it reads, 'dots' for results of matrix products, 'blocks' for its inputs.
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
    """Returns one choice for all ops.

    Args:
      name: 'reference' or 'xla'; segment cross-attention is computed by
        'gather' in place of 'xla'.
    """
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
  """Returns the implementations that the settings name on a platform.

  The settings are those of `model.implementation`. For an op: 'auto', or a key
  of the op's `support.SUPPORT`, where 'pallas' stands for both 'pallas_tpu' and
  'pallas_triton'. The choice is logged the first time it is asked for.

  Args:
    attention: Setting of self-attention.
    segment_pool: Setting of segment pooling.
    segment_cross: Setting of segment cross-attention.
    nearest_code: Setting of code search.
    platform: 'cpu', 'gpu' or 'tpu', that of the mesh the ops will run on.
    remat: Field `remat` of the result.
    scan_layers: Field `scan_layers` of the result.

  Raises:
    ValueError: If the platform is unknown, or has no such implementation.
  """
  if platform not in PLATFORMS:
    raise ValueError(
      f'platform: got {platform!r}, allowed: {", ".join(PLATFORMS)}'
    )
  resolved = Implementations(
    attention=_resolve('attention', attention, platform),
    segment_pool=_resolve('segment_pool', segment_pool, platform),
    segment_cross=_resolve('segment_cross', segment_cross, platform),
    nearest_code=_resolve('nearest_code', nearest_code, platform),
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
