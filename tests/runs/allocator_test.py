"""Restarting with settings of the C library's allocator."""

import os
import subprocess
import sys

import pytest

from abstractinator.runs import allocator

pytestmark = pytest.mark.skipif(
  sys.platform != 'linux', reason='only Linux has the settings'
)
# Prints the process, then whether it has the settings, and its page faults in
# the second of two times that 256 MiB are written to and freed.
_CODE = """
import ctypes, os, resource, sys
print(os.getpid(), flush=True)
from abstractinator.runs import allocator
allocator.keep_memory()
print(os.environ.get('GLIBC_TUNABLES') == allocator._TUNABLES)
print(sys.argv[1:])
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = ctypes.c_void_p(libc.malloc(256 << 20))
  ctypes.memset(block, 1, 256 << 20)
  libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(*argv: str, **env: str) -> list[str]:
  """Returns lines: processes, settings, arguments, page faults."""
  clean = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  done = subprocess.run(
    [sys.executable, '-c', _CODE, 'a b', *argv],
    env=clean | {'PYTHONPATH': os.getcwd(), 'JAX_PLATFORMS': 'cpu'} | env,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()


def test_restarts_once_and_frees_without_page_faults():
  first, second, is_set, arguments, faults = _run('--c=1')
  assert first == second
  assert is_set == 'True'
  assert arguments == "['a b', '--c=1']"
  assert int(faults) < 10


@pytest.mark.parametrize(
  ('argv', 'env'),
  [
    ([allocator.OFF], {}),
    ([], {'GLIBC_TUNABLES': 'glibc.malloc.check=0'}),
    ([], {'JAX_PLATFORMS': 'cuda,cpu'}),
  ],
  ids=['flag', 'tunables', 'accelerator'],
)
def test_leaves_the_process_alone(argv, env):
  _, is_set, *_, faults = _run(*argv, **env)
  assert is_set == 'False'
  # Pages of 2 MiB or of 4 KiB, as the system has them.
  assert int(faults) > 100


def test_a_log_does_not_tell_of_other_tunables(monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=0')
  assert allocator.note() is None


def test_installed_plugins_decide_where_no_platform_is_named(monkeypatch):
  found: set[str] = set()
  monkeypatch.setattr(
    allocator.importlib.util, 'find_spec', lambda name: name in found or None
  )
  assert allocator._is_for_cpu({'JAX_PLATFORMS': ''})
  found.add('libtpu')
  assert not allocator._is_for_cpu({})
  assert allocator._is_for_cpu({'JAX_PLATFORMS': 'cpu'})
