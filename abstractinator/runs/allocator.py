"""Settings of the C library's memory allocator, for a process on Linux."""

import importlib.util
import os
import sys
from collections.abc import Mapping

# Flag of `abstractinator train` that leaves the allocator as it is.
OFF = '--release_memory'
_VARIABLE = 'GLIBC_TUNABLES'
# Pages of 2 MiB; no mapping of its own for a large block, which would be given
# back when the block is freed; one heap, since only the first can hold large
# blocks; nothing given back below 16 GiB; a heap that grows by 64 MiB.
_TUNABLES = ':'.join(
  f'glibc.malloc.{name}={value}'
  for name, value in {
    'hugetlb': 1,
    'mmap_max': 0,
    'arena_max': 1,
    'trim_threshold': 16 << 30,
    'top_pad': 64 << 20,
  }.items()
)


def keep_memory() -> None:
  """Restarts the process so that it keeps the memory of a step for the next.

  XLA on CPU allocates its temporary memory anew in every step. By default the C
  library takes it from the system and gives it back each time, and the page
  faults cost up to half of a step. The C library reads its settings when a
  process starts, so this one starts again, with the same arguments and the same
  process id.

  Nothing changes if the command line has `--release_memory`, if the environment
  has tunables already, or if jax may use an accelerator, whose temporary memory
  is not the host's: JAX_PLATFORMS names one, or it names nothing and a plugin
  for one is installed. Whether the device is there would take as long to find
  out as the import of jax; JAX_PLATFORMS=cpu decides it.

  Source: GNU C Library manual, Memory Allocation Tunables.
  """
  if sys.platform != 'linux' or _VARIABLE in os.environ or OFF in sys.argv:
    return
  if _is_for_cpu(os.environ):
    os.environ[_VARIABLE] = _TUNABLES
    os.execv(sys.executable, sys.orig_argv)


def _is_for_cpu(environment: Mapping[str, str]) -> bool:
  """Tells, without jax, whether jax can only run on the CPU."""
  platforms = environment.get('JAX_PLATFORMS')
  if platforms:
    return platforms == 'cpu'
  plugins = 'jax_plugins', 'libtpu'
  return not any(importlib.util.find_spec(name) for name in plugins)


def note() -> str | None:
  """Returns a line about the setting for the log; None if it is not set."""
  if os.environ.get(_VARIABLE) != _TUNABLES:
    return None
  return f'memory: kept between steps for speed, 0.3 to 0.9 GiB; off by {OFF}'
