"""Restarting with huge pages."""

import os
import subprocess
import sys

import pytest

_CODE = """
import os, sys
print(os.getpid(), flush=True)
from abstractinator.runs import huge_pages
huge_pages.ensure()
print(os.environ['GLIBC_TUNABLES'], *sys.argv[1:])
"""


def _lines(**env: str) -> list[str]:
  clean = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  done = subprocess.run(
    [sys.executable, '-c', _CODE, 'a b', '--c=1'],
    env=clean | {'PYTHONPATH': os.getcwd()} | env,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux has the setting')
def test_restarts_once_as_the_same_process_with_the_same_arguments():
  first, second, line = _lines()
  assert first == second
  assert line == 'glibc.malloc.hugetlb=1 a b --c=1'


def test_leaves_tunables_alone():
  _, line = _lines(GLIBC_TUNABLES='glibc.malloc.check=0')
  assert line == 'glibc.malloc.check=0 a b --c=1'
