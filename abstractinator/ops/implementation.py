"""Choice of the implementation of each op, by setting and platform."""

import dataclasses
import functools

from absl import logging

from abstractinator.config import ImplementationConfig
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
  remat: str
  scan_layers: bool

  def __str__(self) -> str:
    fields = {
      name: value
      for name, value in dataclasses.asdict(self).items()
      if value not in ('none', False)
    }
    return ', '.join(f'{name} {value}' for name, value in fields.items())


@functools.cache
def resolve_implementations(
  settings: ImplementationConfig, platform: str
) -> Implementations:
  """Returns the implementations that the settings name on a platform.

  The choice is logged the first time it is asked for.

  Args:
    settings: For each op 'auto', or a key of the op's `support.SUPPORT`, where
      'pallas' stands for both 'pallas_tpu' and 'pallas_triton'.
    platform: 'cpu', 'gpu' or 'tpu', that of the mesh the ops will run on.

  Raises:
    ValueError: If the platform is unknown, or has no such implementation.
  """
  if platform not in PLATFORMS:
    raise ValueError(
      f'platform: got {platform!r}, allowed: {", ".join(PLATFORMS)}'
    )
  ops = {op: _resolve(op, getattr(settings, op), platform) for op in _SUPPORTS}
  resolved = Implementations(
    **ops, remat=settings.remat, scan_layers=settings.scan_layers
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
