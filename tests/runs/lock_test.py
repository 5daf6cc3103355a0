"""Locks of directories: one process at a time, stale ones are recognized."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from abstractinator.runs import lock
from abstractinator.runs.lock import NAME, STALE_SECONDS, Lock

HOLD = """
import sys, time
from abstractinator.runs.lock import Lock
with Lock(sys.argv[1]):
  print('held', flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  """Returns another process that holds the lock of a directory."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b'held\n'
  yield process
  process.kill()
  process.communicate()


def error_of(directory):
  with pytest.raises(ValueError, match='writes there') as info, Lock(directory):
    pass
  assert '\n' not in str(info.value)
  return str(info.value)


def edit(directory, **changes):
  path = directory / NAME
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make_old(directory, seconds):
  then = time.time() - seconds
  os.utime(directory / NAME, (then, then))


def test_a_second_process_is_refused_until_the_first_ends(tmp_path, holder):
  message = error_of(str(tmp_path))
  assert f'{tmp_path}: process {holder.pid} on ' in message
  assert f'{tmp_path}/{NAME}' in message
  make_old(tmp_path, 10 * STALE_SECONDS)
  # It is there, however long it has been silent.
  error_of(str(tmp_path))
  holder.kill()
  # Even before its parent has heard that it ended.
  os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
  with Lock(str(tmp_path)):
    assert json.loads((tmp_path / NAME).read_text())['pid'] == os.getpid()
  assert not os.listdir(tmp_path)


def test_the_number_of_a_killed_process_may_be_used_again(tmp_path, holder):
  edit(tmp_path, started='1')
  with Lock(str(tmp_path)):
    pass
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  'change', [{'host': 'other'}, {'boot': 'other'}, {'namespace': 'other'}]
)
def test_a_process_elsewhere_is_known_by_its_last_touch(
  tmp_path, holder, change
):
  edit(tmp_path, **change, pid=1)
  message = error_of(str(tmp_path))
  assert 'process 1 on ' in message
  assert 'If it is gone, remove the lock' in message
  make_old(tmp_path, STALE_SECONDS + 60)
  with Lock(str(tmp_path)):
    pass


@pytest.mark.parametrize('content', [b'', b'{"pid', b'[1]', b'\xff'])
def test_a_lock_that_says_nothing_is_held(tmp_path, content):
  """A process creates its lock a moment before it writes to it."""
  (tmp_path / NAME).write_bytes(content)
  error_of(str(tmp_path))
  make_old(tmp_path, STALE_SECONDS + 60)
  with Lock(str(tmp_path)):
    pass


def test_a_held_lock_is_touched(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, 'TOUCH_SECONDS', 0.01)
  with Lock(str(tmp_path)):
    make_old(tmp_path, 1000)
    deadline = time.monotonic() + 60
    while time.time() - (tmp_path / NAME).stat().st_mtime > 500:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_one_of_many_takes_over_a_stale_lock(tmp_path):
  for _ in range(20):
    (tmp_path / NAME).write_bytes(b'')
    make_old(tmp_path, STALE_SECONDS + 60)
    start, end = threading.Barrier(8), threading.Barrier(8)
    held = []

    def take(start=start, end=end, held=held):
      start.wait()
      try:
        with Lock(str(tmp_path)):
          held.append(1)
          end.wait()
      except ValueError:
        end.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(held) == 1
    assert not os.listdir(tmp_path)


def test_a_lock_that_was_taken_over_is_left(tmp_path):
  with Lock(str(tmp_path)):
    edit(tmp_path, pid=1)
  assert os.listdir(tmp_path) == [NAME]


def test_a_directory_that_nothing_was_written_to_goes_again(tmp_path):
  path = tmp_path / 'a' / 'b'
  with Lock(str(path)):
    assert path.is_dir()
  assert not os.listdir(tmp_path)
  with Lock(str(path)):
    (path / 'file').write_text('')
  assert os.listdir(path) == ['file']


def test_a_file_in_the_place_of_the_directory(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in ('file', 'file/run'):
    with pytest.raises(OSError, match='file'), Lock(str(tmp_path / path)):
      pass
