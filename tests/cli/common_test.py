"""Files that commands write, and messages that they hide."""

import logging
import os
import stat

import pytest

from abstractinator.cli import common


def test_a_new_file_is_like_any_other(tmp_path):
  path = tmp_path / 'out'
  mask = os.umask(0o027)
  try:
    common.write_new(str(path), b'content')
  finally:
    os.umask(mask)
  assert path.read_bytes() == b'content'
  assert stat.S_IMODE(path.stat().st_mode) == 0o640
  assert os.listdir(tmp_path) == ['out']


def test_a_new_file_without_a_directory_in_its_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  common.write_new('out', b'content')
  assert (tmp_path / 'out').read_bytes() == b'content'


@pytest.mark.parametrize('failing', ['fsync', 'replace'])
def test_nothing_is_left_of_a_file_that_cannot_be_written(
  failing, tmp_path, monkeypatch
):
  def fail(*args):
    raise OSError('disk full')

  monkeypatch.setattr(os, failing, fail)
  with pytest.raises(OSError, match='disk full'):
    common.write_new(str(tmp_path / 'out'), b'content')
  assert not os.listdir(tmp_path)


def test_what_lies_there_is_kept(tmp_path):
  (tmp_path / 'out').write_bytes(b'kept')
  with pytest.raises(ValueError, match='exists, allowed: a path with nothing'):
    common.write_new(str(tmp_path / 'out'), b'content')
  assert (tmp_path / 'out').read_bytes() == b'kept'


def test_a_directory_that_is_not_there(tmp_path):
  path = str(tmp_path / 'absent' / 'out')
  with pytest.raises(ValueError, match=r'got no directory .*absent.*, allowed'):
    common.require_new(path)


def test_libraries_log_errors_only(caplog, monkeypatch):
  monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    common.be_quiet()
    logging.getLogger('jax').warning('hidden')
    logging.getLogger('jax').error('shown')
  finally:
    logging.disable(logging.NOTSET)
  assert caplog.messages == ['shown']
