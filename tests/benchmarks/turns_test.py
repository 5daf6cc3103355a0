"""Tests of benchmarks that take turns."""

import os
import subprocess
import sys
import time

from abstractinator.benchmarks import turns

_SCRIPT = """
import sys, time
from abstractinator.benchmarks import turns
with turns.turn():
  print('begin', time.time(), flush=True)
  time.sleep(0.3)
  print('end', time.time(), flush=True)
"""


def _start(environment):
  return subprocess.Popen(
    [sys.executable, '-c', _SCRIPT],
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    text=True,
  )


def _times(process):
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  return [float(line.split()[1]) for line in output.splitlines()]


def test_turns_begin_when_all_are_ready_and_do_not_overlap(tmp_path):
  shared = turns.environment(str(tmp_path), 3)
  processes = [_start(shared) for _ in range(2)]
  while len(list(tmp_path.glob('*.ready'))) < 2:
    time.sleep(0.05)
  # The third has failed.
  ready = time.time()
  turns.give_up(str(tmp_path), 0)
  (begin, end), (later, _) = sorted(map(_times, processes))
  assert ready <= begin
  assert end <= later


def test_who_is_alone_does_not_wait():
  begin, end = _times(_start({}))
  assert begin < end
