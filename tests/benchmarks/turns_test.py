"""Tests of benchmarks that take turns."""

import os
import subprocess
import sys
import time

import pytest

from abstractinator.benchmarks import accelerator, turns

_TURN = (
  'import time; from abstractinator.benchmarks import turns; turns.take();'
  ' print(time.time()); time.sleep(0.3); print(time.time())'
)


def _overlap(outputs) -> bool:
  (_, end), (begin, _) = sorted(
    [float(line) for line in output.splitlines()[:2]] for output in outputs
  )
  return begin < end


def test_turns_do_not_overlap_and_nobody_waits_for_one_that_failed():
  commands = {
    'one': ('-c', _TURN),
    'two': ('-c', _TURN),
    'early': ('-c', 'raise SystemExit(3)'),
    'late': ('-c', f'{_TURN}; raise SystemExit(4)'),
  }
  found = list(accelerator.run(commands, {}, 120.0))
  assert found[0][0] == 'early'
  assert {name: is_well for name, _, is_well in found} == {
    'one': True,
    'two': True,
    'early': False,
    'late': False,
  }
  outputs = {name: output for name, output, _ in found}
  assert outputs['early'] == 'FAILED'
  assert not _overlap([outputs['one'], outputs['two']])
  assert not _overlap([outputs['one'], outputs['late']])


def test_one_that_hangs_costs_the_others_nothing():
  commands = {
    'hangs': ('-c', 'import time; print("x", flush=True); time.sleep(1000)'),
    'ready': ('-c', _TURN),
  }
  (first, _, is_well), last = accelerator.run(commands, {}, 12.0)
  assert (first, is_well) == ('ready', True)
  assert last == ('hangs', 'x\nstopped: out of time', False)


def test_what_was_started_ends_with_who_started_it(tmp_path):
  script = f'import os, time; open({str(tmp_path / "pid")!r}, "w").write('
  script += 'str(os.getpid())); time.sleep(1000)'
  parts = accelerator.run({'a': ('-c', ''), 'b': ('-c', script)}, {}, 100.0)
  assert next(parts)[0] == 'a'
  while not (tmp_path / 'pid').exists() or not (tmp_path / 'pid').read_text():
    time.sleep(0.05)
  parts.close()
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_a_directory_that_is_gone_is_an_error(tmp_path):
  shared = turns.environment(str(tmp_path / '.'), 2, 60.0)
  process = subprocess.Popen(
    [sys.executable, '-c', _TURN],
    env=os.environ | shared,
    stderr=subprocess.PIPE,
    text=True,
  )
  while not list(tmp_path.glob('*.ready')):
    assert process.poll() is None
    time.sleep(0.05)
  for path in tmp_path.iterdir():
    path.unlink()
  tmp_path.rmdir()
  _, error = process.communicate(timeout=30)
  assert 'FileNotFoundError' in error


def test_who_is_alone_does_not_wait():
  subprocess.run([sys.executable, '-c', _TURN], check=True, timeout=60)
