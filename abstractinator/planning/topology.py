"""Chips to compile for, by the names under which they are rented."""

import dataclasses
import importlib.util
import json
import math
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from abstractinator.runs.chips import CHIPS, Chip

if TYPE_CHECKING:
  import jax


def _slices(grids: str, cores: int) -> dict[int, tuple[int, ...]]:
  shapes = [tuple(map(int, grid.split('x'))) for grid in grids.split()]
  return {cores * math.prod(shape): shape for shape in shapes}


# Grids of slices by the number in their names, which counts cores: of those a
# v5p has two.
_SQUARES = _slices('1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16', cores=1)
_CUBES = _slices(
  '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16', cores=2
)
_SLICES = {'v5e': _SQUARES, 'v5p': _CUBES, 'v6e': _SQUARES}
_GPUS_OF_A_HOST = 8
# Limits of compute capability 9.0, from NVIDIA's CUDA programming guide (shared
# memory in bytes, registers in words of 32 bits) and the cards' data sheets.
_HOPPER = dict(
  threads_per_block_limit=1024,
  threads_per_warp=32,
  threads_per_core_limit=2048,
  shared_memory_per_block=48 << 10,
  shared_memory_per_block_optin=227 << 10,
  shared_memory_per_core=228 << 10,
  registers_per_core_limit=64 << 10,
  registers_per_block_limit=64 << 10,
  core_count=132,
  fpus_per_core=128,
  block_dim_limit_x=2**31 - 1,
  block_dim_limit_y=2**16 - 1,
  block_dim_limit_z=2**16 - 1,
  thread_dim_limit_x=1024,
  thread_dim_limit_y=1024,
  thread_dim_limit_z=64,
  l2_cache_size=50 << 20,
  clock_rate_ghz=1.98,
  device_address_bits=64,
  driver_version='12.8.0',
  runtime_version='12.8.0',
  compile_time_toolkit_version='12.8.0',
  dnn_version='9.8.0',
  device_vendor='NVIDIA Corporation',
  platform_version='Compute Capability 9.0a',
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a TPU pod, or GPUs.

  Attributes:
    name: Name under which it is rented, such as v5e-256 or h100x8.
    platform: 'tpu' or 'gpu'.
    chip: Kind of its chips.
    shape: Grid of the TPUs, or number of hosts and of GPUs on each host.
  """

  name: str
  platform: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """Number of chips."""
    return math.prod(self.shape)


def parse(name: str) -> Topology:
  """Parses the name of a topology, such as v5e-256 or h100x8.

  Raises:
    ValueError: If there is no such topology.
  """
  allowed = 'v5e-N, v6e-N, v5p-N or h100xN, such as v5e-256'
  if gpus := re.fullmatch(r'h100x(\d+)', name):
    count = int(gpus[1])
    of_a_host = min(count, _GPUS_OF_A_HOST)
    if count and count % of_a_host == 0:
      shape = (count // of_a_host, of_a_host)
      return Topology(name, 'gpu', CHIPS['h100'], shape)
    allowed = f'1 to {_GPUS_OF_A_HOST} GPUs or a multiple of it'
  tpus = re.fullmatch(r'(v\d[a-z])-(\d+)', name)
  if tpus and tpus[1] in _SLICES:
    shapes = _SLICES[tpus[1]]
    if int(tpus[2]) in shapes:
      return Topology(name, 'tpu', CHIPS[tpus[1]], shapes[int(tpus[2])])
    allowed = ', '.join(f'{tpus[1]}-{n}' for n in shapes)
  raise ValueError(f'--topology: got {name!r}, allowed: {allowed}')


def prepare_environment() -> None:
  """Lets the process compile for chips it lacks; call before importing jax."""
  # Chips that are at hand stay free for other processes.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  for name, value in dict(
    TPU_SKIP_MDS_QUERY='1',
    TPU_ACCELERATOR_TYPE='v5litepod-4',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_WORKER_ID='0',
    # Without it a second process would stop at the lock of the first.
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  ).items():
    os.environ.setdefault(name, value)


def devices(topology: Topology) -> 'Sequence[jax.Device]':
  """Returns devices to compile for, one for each chip; they compute nothing.

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
    generation = topology.name.partition('-')[0]
    grid = 'x'.join(map(str, topology.shape))
    bounds: dict[str, Any] = {}
    if topology.num_chips == 1:
      bounds['chips_per_host_bounds'] = (1, 1, 1)
    return topologies.get_topology_desc(
      f'{generation}:{grid}', platform='tpu', **bounds
    ).devices
  hosts, gpus = topology.shape
  try:
    return topologies.get_topology_desc(
      platform='cuda',
      topology=f'1x{hosts}x{gpus}',
      target_config=gpu_target(topology.chip),
    ).devices
  except (RuntimeError, NotImplementedError) as error:
    raise ValueError(
      f'--topology: got {topology.name}, allowed: with the compiler of GPUs'
      f" only: pip install 'abstractinator[cuda12]' ({error})"
    ) from error


def gpu_target(chip: Chip) -> str:
  """Returns the GpuTargetConfigProto of a Hopper card, in text format.

  By it XLA compiles for an NVIDIA GPU that is not at hand.
  """
  values = _HOPPER | dict(
    name=chip.device_kind,
    memory_bandwidth=int(chip.memory_bytes_per_second),
    device_memory_size=int(chip.memory_bytes),
  )
  body = '\n'.join(f'  {key}: {json.dumps(x)}' for key, x in values.items())
  return (
    f'gpu_device_info {{\n{body}\n'
    '  cuda_compute_capability { major: 9 minor: 0'
    ' feature_extension: ACCELERATED_FEATURES }\n}\n'
    'platform_name: "CUDA"\n'
    'dnn_version_info { major: 9 minor: 8 patch: 0 }\n'
    f'device_description_str: "{chip.device_kind}"\n'
  )
