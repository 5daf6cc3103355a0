"""Chips to compile for, by the names under which they are rented."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from abstractinator.planning import gpu_target
from abstractinator.training.chips import CHIPS, Chip

if TYPE_CHECKING:
  import jax

_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
  (2, 2, 1),
  (2, 2, 2),
  (2, 2, 4),
  (2, 4, 4),
  (4, 4, 4),
  (4, 4, 8),
  (4, 8, 8),
  (8, 8, 8),
  (8, 8, 16),
)
# Generation to slices by the number in their names: of v5p it counts cores, of
# which a chip has two.
_SLICES = {
  'v5e': {math.prod(shape): shape for shape in _SQUARES},
  'v5p': {2 * math.prod(shape): shape for shape in _CUBES},
  'v6e': {math.prod(shape): shape for shape in _SQUARES},
}
_GPUS_OF_A_HOST = 8
_EXAMPLES = 'v5e-N, v6e-N, v5p-N or h100xN, such as v5e-256'


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a pod, or GPUs.

  Attributes:
    name: As asked for.
    platform: 'tpu' or 'gpu'.
    chip: What it consists of.
    shape: Of TPUs their grid, of GPUs hosts and GPUs of each.
  """

  name: str
  platform: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """How many chips it has."""
    return math.prod(self.shape)


def parse(name: str) -> Topology:
  """Reads a name.

  Args:
    name: Such as v5e-256 or h100x8.

  Returns:
    What it means.

  Raises:
    ValueError: If it means nothing.
  """
  found = re.fullmatch(r'(v\d[a-z])-(\d+)|(h100)x(\d+)', name)
  if not found:
    raise ValueError(f'--topology: got {name!r}, allowed: {_EXAMPLES}')
  generation, size, gpu, count = found.groups()
  if gpu:
    return Topology(name, 'gpu', CHIPS[gpu], _gpus(name, int(count)))
  if generation not in _SLICES:
    raise ValueError(
      f'--topology: got {name!r}, allowed: {_EXAMPLES}; generations are'
      f' {", ".join(_SLICES)}'
    )
  shapes = _SLICES[generation]
  if int(size) not in shapes:
    allowed = ', '.join(f'{generation}-{n}' for n in shapes)
    raise ValueError(f'--topology: got {name!r}, allowed: {allowed}')
  return Topology(name, 'tpu', CHIPS[generation], shapes[int(size)])


def _gpus(name: str, count: int) -> tuple[int, int]:
  if not count or (count > _GPUS_OF_A_HOST and count % _GPUS_OF_A_HOST):
    raise ValueError(
      f'--topology: got {name!r}, allowed: 1 to {_GPUS_OF_A_HOST} GPUs or a'
      ' multiple of it'
    )
  hosts = max(count // _GPUS_OF_A_HOST, 1)
  return hosts, count // hosts


def prepare_environment() -> None:
  """Readies the process to compile for chips it lacks; before jax starts."""
  # Chips that are at hand are left to others.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  for name, value in dict(
    TPU_SKIP_MDS_QUERY='1',
    TPU_ACCELERATOR_TYPE='v5litepod-4',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_WORKER_ID='0',
    # Else a second process stops at the lock of the first.
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  ).items():
    os.environ.setdefault(name, value)


def devices(topology: Topology) -> 'Sequence[jax.Device]':
  """Devices to compile for, which compute nothing.

  Args:
    topology: From `parse`.

  Returns:
    One a chip.

  Raises:
    ValueError: If the compiler for them is not installed.
  """
  from jax.experimental import topologies

  if topology.platform == 'tpu':
    if importlib.util.find_spec('libtpu') is None:
      raise ValueError(
        f'--topology: got {topology.name}, allowed: with the compiler of TPUs'
        " only: pip install 'abstractinator[tpu-plan]'"
      )
    return topologies.get_topology_desc(
      platform='tpu', **_tpu_arguments(topology)
    ).devices
  hosts, gpus = topology.shape
  try:
    return topologies.get_topology_desc(
      platform='cuda',
      topology=f'1x{hosts}x{gpus}',
      target_config=gpu_target.text(topology.chip),
    ).devices
  except (RuntimeError, NotImplementedError) as error:
    raise ValueError(
      f'--topology: got {topology.name}, allowed: with the compiler of GPUs'
      f" only: pip install 'abstractinator[cuda12]' ({error})"
    ) from error


def _tpu_arguments(topology: Topology) -> dict[str, Any]:
  generation = topology.name.partition('-')[0]
  name = f'{generation}:{"x".join(map(str, topology.shape))}'
  arguments = {'topology_name': name}
  if topology.num_chips == 1:
    arguments['chips_per_host_bounds'] = (1,) * 3
  return arguments
