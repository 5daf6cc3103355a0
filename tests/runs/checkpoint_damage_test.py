"""Checkpoints whose files are damaged."""

import glob
import os
import shutil

import jax
import pytest

from abstractinator.runs.checkpoint import Checkpointer
from tests.helpers.tiny_checkpoint import CONFIG, abstract, error_of


def largest_data_file(workdir, step):
  files = glob.glob(
    f'{workdir}/checkpoints/{step}/state/**/d/*', recursive=True
  )
  return max(files, key=os.path.getsize)


def flip(path):
  with open(path, 'r+b') as f:
    data = bytearray(f.read())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(b ^ 0xFF for b in data[middle:][:8])
    f.seek(0)
    f.write(data)


def truncate(path):
  with open(path, 'r+b') as f:
    f.truncate(os.path.getsize(path) // 2)


def save_one_array(workdir, *steps):
  """One leaf, so that the largest file is its data and not an index."""
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
    (shutil.rmtree, 'state'),
    (shutil.rmtree, 'checksums'),
    (shutil.rmtree, 'data'),
  ],
)
def test_damaged_checkpoint(tmp_path, damage, file):
  target = save_one_array(tmp_path, 5, 7)
  directory = tmp_path / 'checkpoints/7'
  damage(directory / file if file else largest_data_file(tmp_path, 7))

  def restore():
    with Checkpointer(tmp_path, 9, 'loss') as checkpointer:
      checkpointer.restore(target)

  message = error_of(restore)
  assert f'{directory}: this checkpoint is damaged' in message
  assert 'others there: 5;' in message


def test_flipped_bytes_in_an_array(tmp_path):
  target = save_one_array(tmp_path, 5, 7)
  flip(largest_data_file(tmp_path, 7))
  with Checkpointer(tmp_path, 9) as checkpointer:
    message = error_of(checkpointer.restore, target)
    assert 'checkpoints/7: this checkpoint is damaged' in message
    assert 'wrong checksum of x' in message
    assert checkpointer.restore(target, 5).step == 5


def test_damaged_metrics(tmp_path):
  save_one_array(tmp_path, 5)
  truncate(tmp_path / 'checkpoints/5/metrics/metrics')
  message = error_of(Checkpointer, tmp_path, 9, 'loss')
  assert f'{tmp_path}/checkpoints/*/metrics: one of these is' in message
