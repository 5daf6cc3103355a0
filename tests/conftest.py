"""Sets up jax for every test, and hands out the reference tensors."""

import gc
import itertools
import logging
import os
import pathlib

import pytest

from tests.helpers import golden_files, xla_flags

# All are read when jax is imported, which happens after this file.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A second run compiles little. Each worker has a cache of its own: jax writes
# entries in place.
_WORKER = os.environ.get('PYTEST_XDIST_WORKER', 'main')
_CACHE = pathlib.Path(__file__).parents[1] / '.cache' / 'jax' / _WORKER
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
# XLA_FLAGS=--xla_backend_optimization_level=3 tests what is optimized.
os.environ['XLA_FLAGS'] = xla_flags.joined(
  os.environ.get('XLA_FLAGS', ''),
  '--xla_force_host_platform_device_count=8',
  *xla_flags.QUICK,
)
# Collecting costs a third of the time of a test that only traces: what is
# traced is a large heap of objects that live on. `_few_regions` collects.
gc.disable()
_MAPS = pathlib.Path('/proc/self/maps')
_MANY_REGIONS = 20_000
_TESTS = itertools.count()


@pytest.fixture(autouse=True)
def _few_regions():
  """Lets go of compiled programs before a process may map no more memory.

  Linux allows 65,530 regions, of which each program takes some; the process
  that asks for more is killed.
  """
  yield
  # Commands silence logs for the rest of the process.
  logging.disable(logging.NOTSET)
  if next(_TESTS) % 8 or not _MAPS.exists():
    return
  if _MAPS.read_bytes().count(b'\n') > _MANY_REGIONS:
    import jax

    jax.clear_caches()
    gc.collect()


def pytest_addoption(parser):
  parser.addoption(
    '--golden-dir',
    default=str(golden_files.DEFAULT),
    help='folder of reference tensors (*.npz) computed with the original',
  )


def pytest_generate_tests(metafunc):
  """Runs a test on every reference file of the kind that its marker names.

  It is skipped if the folder has none.
  """
  mark = metafunc.definition.get_closest_marker('golden')
  if mark is not None:
    folder = metafunc.config.getoption('--golden-dir')
    cases = golden_files.find(folder, *mark.args, **mark.kwargs)
    metafunc.parametrize('golden', cases, ids=[case.name for case in cases])
