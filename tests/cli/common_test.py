"""Files that commands write, and messages that they hide."""

import errno
import logging
import os
import stat

import pytest

from abstractinator.cli import common
from abstractinator.cli.main import main
from abstractinator.runs import compilation_cache


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


@pytest.mark.parametrize('failing', ['fsync', 'link'])
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
  assert os.listdir(tmp_path) == ['out']


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
  def refuse(*args):
    raise OSError(errno.EPERM, 'Operation not permitted')

  monkeypatch.setattr(os, 'link', refuse)
  test_a_new_file_is_like_any_other(tmp_path)
  with pytest.raises(ValueError, match='exists, allowed: a path with nothing'):
    common.write_new(str(tmp_path / 'out'), b'other')
  assert (tmp_path / 'out').read_bytes() == b'content'
  assert os.listdir(tmp_path) == ['out']


def test_no_link_is_followed(tmp_path):
  """A link that waits under the name of the output is a file that is there."""
  (tmp_path / 'target').write_bytes(b'kept')
  for target in ('target', 'absent'):
    (tmp_path / 'out').symlink_to(tmp_path / target)
    for function in (common.require_new, lambda x: common.write_new(x, b'new')):
      with pytest.raises(ValueError, match='exists, allowed: '):
        function(str(tmp_path / 'out'))
    (tmp_path / 'out').unlink()
  assert (tmp_path / 'target').read_bytes() == b'kept'
  assert os.listdir(tmp_path) == ['target']


def test_temporary_files_have_names_that_nobody_can_know(tmp_path, monkeypatch):
  seen = []
  fsync = os.fsync

  def look(descriptor):
    seen.append(os.readlink(f'/proc/self/fd/{descriptor}'))
    fsync(descriptor)

  monkeypatch.setattr(os, 'fsync', look)
  for name in ('a', 'b'):
    common.write_new(str(tmp_path / name), b'content')
  folders = {os.path.dirname(path) for path in seen}
  assert len(folders) == 2
  assert all(os.path.dirname(folder) == str(tmp_path) for folder in folders)


def test_a_name_that_cannot_be_written(tmp_path):
  path = str(tmp_path / ('x' * 300))
  with pytest.raises(OSError, match='File name too long'):
    common.require_new(path)
  common.require_new(str(tmp_path / 'out'))
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  'command',
  [
    'encode no_run no_file --out=OUT.npz',
    'decode no_run no_file.npz --out=OUT',
    'view no_run no_file --html=OUT',
    'compress no_run no_file OUT',
    'decompress no_run no_file OUT',
  ],
)
def test_it_is_refused_before_the_work(command, tmp_path, capsys):
  out = str(tmp_path / ('x' * 300))
  assert main(command.replace('OUT', out).split()) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'File name too long' in line


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


def test_a_command_says_where_compiled_programs_are(capsys, monkeypatch):
  monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '3')
  lines = ['kept in DIR', None]
  monkeypatch.setattr(compilation_cache, 'use', lambda: lines.pop(0))
  common.prepare()
  common.prepare()
  assert capsys.readouterr().err == 'kept in DIR\n'
