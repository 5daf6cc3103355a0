"""Damaged checkpoints, and a disk that refuses one."""

import contextlib
import errno
import glob
import json
import os
import random
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import pytest

from abstractinator.runs import checkpoint
from abstractinator.runs.checkpointer import Checkpointer
from tests.helpers.saved_states import (
  CONFIG,
  abstract,
  assert_equal,
  error_of,
  steps_in,
)


def largest_data_file(workdir, step):
  files = glob.glob(
    f'{workdir}/checkpoints/{step}/state/**/d/*', recursive=True
  )
  return max(files, key=os.path.getsize)


def truncate(path):
  with open(path, 'r+b') as f:
    f.truncate(os.path.getsize(path) // 2)


def nest(path):
  path.write_text('[' * 100_000)


def save_one_array(workdir, *steps):
  """Saves one array, so that the largest file is its data and not an index."""
  with Checkpointer(workdir, 9, 'loss') as checkpointer:
    for step in steps:
      state = {'x': jax.random.normal(jax.random.key(step), (64, 64))}
      checkpointer.save(step, state, {}, CONFIG, {'loss': 1.0})
  return abstract(state)


# Orbax leaves tasks of its own unfinished when it fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  ('damage', 'file'),
  [
    (truncate, None),
    (os.remove, None),
    (truncate, 'state/manifest.ocdbt'),
    (os.remove, 'state/manifest.ocdbt'),
    (truncate, 'state/_METADATA'),
    (os.remove, 'state/_METADATA'),
    (truncate, 'config/metadata'),
    (os.remove, 'config/metadata'),
    (truncate, 'checksums/metadata'),
    (nest, 'config/metadata'),
    (nest, 'checksums/metadata'),
    (shutil.rmtree, 'state'),
    (shutil.rmtree, 'checksums'),
    (shutil.rmtree, 'data'),
  ],
)
def test_damaged_checkpoint(tmp_path, damage, file):
  target = save_one_array(tmp_path, 5, 7)
  directory = tmp_path / 'checkpoints/7'
  damage(directory / file if file else largest_data_file(tmp_path, 7))
  message = error_of(checkpoint.restore, tmp_path, target)
  assert f'{directory}: this checkpoint is damaged' in message
  assert 'others there: 5;' in message


def test_flipped_bytes_in_an_array(tmp_path):
  target = save_one_array(tmp_path, 5, 7)
  path = largest_data_file(tmp_path, 7)
  with open(path, 'r+b') as f:
    f.seek(os.path.getsize(path) // 2)
    data = f.read(8)
    f.seek(-8, os.SEEK_CUR)
    f.write(bytes(b ^ 0xFF for b in data))
  message = error_of(checkpoint.restore, tmp_path, target)
  assert 'checkpoints/7: this checkpoint is damaged' in message
  assert 'wrong checksum of x' in message
  assert checkpoint.restore(tmp_path, target, 5).step == 5


def test_damaged_metrics(tmp_path):
  target = save_one_array(tmp_path, 5)
  truncate(tmp_path / 'checkpoints/5/metrics/metrics')
  message = error_of(Checkpointer, tmp_path, 9, 'loss')
  assert f'{tmp_path}/checkpoints/5: this checkpoint is damaged' in message
  assert '(metrics: Unterminated string' in message
  # Only what continues a run has use for them.
  assert checkpoint.restore(tmp_path, target).step == 5


def json_files(workdir, step):
  folder = workdir / 'checkpoints' / str(step)
  names = ('checksums/metadata', 'config/metadata', 'data/metadata')
  return [folder / name for name in (*names, 'metrics/metrics')]


def restored_or_error(workdir, target):
  try:
    with Checkpointer(workdir, 9, 'loss'):
      return checkpoint.restore(workdir, target), None
  except ValueError as error:
    return None, str(error)


def test_no_flipped_bit_of_a_json_item_is_used(tmp_path):
  target = save_one_array(tmp_path, 5)
  rng = random.Random(0)
  for path in json_files(tmp_path, 5):
    sound = path.read_bytes()
    for _ in range(8):
      bit = rng.randrange(8 * len(sound))
      spoiled = bytearray(sound)
      spoiled[bit // 8] ^= 1 << bit % 8
      path.write_bytes(spoiled)
      found, message = restored_or_error(tmp_path, target)
      if message is not None:
        assert f'this checkpoint is damaged ({path.parent.name}: ' in message
      else:
        # The same values may be written in another way.
        assert found.config == CONFIG
        assert found.data_position == {'next_index': 5}
    path.write_bytes(sound)


@pytest.mark.parametrize(
  ('item', 'values'),
  [
    ('data', []),
    ('data', {'next_index': 6}),
    ('config', CONFIG | {'seed': 4}),
    ('config', {}),
    ('checksums', {}),
    ('checksums', {'step': 5, 'arrays': {}, 'items': {}}),
    ('checksums', [1]),
  ],
)
def test_other_values_in_a_json_item(tmp_path, item, values):
  target = save_one_array(tmp_path, 5)
  path = tmp_path / 'checkpoints/5' / item / 'metadata'
  path.write_text(json.dumps(values))
  message = error_of(checkpoint.restore, tmp_path, target)
  assert f'({item}: wrong checksum)' in message


def test_a_checkpoint_under_the_name_of_another_step(tmp_path):
  target = save_one_array(tmp_path, 36)
  (tmp_path / 'checkpoints/36').rename(tmp_path / 'checkpoints/40')
  for function in (
    lambda: checkpoint.restore(tmp_path, target),
    lambda: checkpoint.read_config(tmp_path),
  ):
    message = error_of(function)
    assert f'{tmp_path}/checkpoints/40: ' in message
    assert 'checksums: it was written as step 36' in message


def test_parts_of_an_old_checkpoint_are_no_damage(tmp_path):
  """A run that is killed while it deletes an old one leaves them."""
  target = save_one_array(tmp_path, 5, 7)
  shutil.rmtree(tmp_path / 'checkpoints/5/checksums')
  with Checkpointer(tmp_path, 1, 'loss') as checkpointer:
    checkpointer.save(9, {'x': jnp.ones((64, 64))}, {}, CONFIG, {'loss': 0.0})
  assert checkpoint.restore(tmp_path, target).step == 9
  assert steps_in(tmp_path) == [9]


def test_a_file_in_the_place_of_the_checkpoints(tmp_path):
  (tmp_path / 'checkpoints').write_text('')
  for function in (checkpoint.latest_step, checkpoint.read_config):
    assert f'{tmp_path}/checkpoints: is no dir' in error_of(function, tmp_path)


@contextlib.contextmanager
def no_file_above(num_bytes):
  """Makes the system refuse to write beyond a size, as a full disk does."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize('is_held', [False, True])
def test_a_disk_that_refuses_a_checkpoint(is_held, tmp_path, caplog):
  target = save_one_array(tmp_path, 5)
  state = {'x': jax.random.normal(jax.random.key(7), (64, 64))}
  checkpointer = Checkpointer(tmp_path, 9)
  with no_file_above(6000):
    checkpointer.save(7, state, {}, CONFIG)
    if is_held:
      # So it is if another process waits for this one at a barrier.
      checkpointer._manager.is_saving_in_progress = lambda: True
    message = None
    for _ in range(1000):
      try:
        checkpointer.check()
      except OSError as error:
        message = str(error)
        break
      time.sleep(0.01)
  assert message == (
    f'{tmp_path}/checkpoints: a checkpoint cannot be written (File too large)'
  )
  assert not caplog.records
  if is_held:
    with pytest.raises(OSError, match='File too large'):
      checkpointer.save(9, state, {}, CONFIG)
  assert checkpoint.restore(tmp_path, target).step == 5
  with Checkpointer(tmp_path, 9) as checkpointer:
    checkpointer.save(7, state, {}, CONFIG)
  assert_equal(checkpoint.restore(tmp_path, target).state, state)


@pytest.mark.parametrize('name', ['EDQUOT', 'EIO', 'ENOSPC', 'EROFS'])
def test_any_error_of_a_disk_is_told(name, tmp_path):
  number = getattr(errno, name)
  reason = os.strerror(number)
  checkpointer = Checkpointer(tmp_path, 9)
  for error in (
    OSError(number, reason),
    # TensorStore says it in one of these ways.
    ValueError(f"INTERNAL: [source='x' os_error_code='{number}']"),
    ValueError(f'Error writing "x" [OS error {number}: no]'),
  ):
    checkpointer._first_error.error = error
    with pytest.raises(OSError, match='cannot be written') as info:
      checkpointer.check()
    assert str(info.value).endswith(f'cannot be written ({reason})')


@pytest.mark.parametrize(
  ('error', 'number', 'is_closed'),
  [(OSError, 2, False), (OSError, 1, True), (FloatingPointError, 2, True)],
)
def test_only_a_fault_of_one_of_several_waits_for_no_checkpoint(
  error, number, is_closed, tmp_path, monkeypatch
):
  closed = []
  checkpointer = Checkpointer(tmp_path, 9)
  monkeypatch.setattr(jax, 'process_count', lambda: number)
  checkpointer._manager.close = lambda: closed.append(True)
  with contextlib.suppress(error), checkpointer:
    raise error('no')
  assert bool(closed) == is_closed
