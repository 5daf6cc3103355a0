"""Globs: names, links, directories, and brackets in paths."""

import os

import pytest

from abstractinator.data import globs, pipeline, sources
from abstractinator.data.documents import Skipped
from tests.data.pipeline_test import data_config
from tests.helpers.document_files import contents, names, write


def find(pattern):
  return names(sources.find_documents(str(pattern)))


@pytest.mark.parametrize('glob', ['none/*.txt', ''])
def test_a_glob_without_files_is_named(tmp_path, monkeypatch, glob):
  write(tmp_path, a_txt=b'a', sub__b_txt=b'b')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError) as info:
    find(f'a.txt,{glob}')
  assert str(info.value).startswith(f'{glob!r}: matches no file, allowed: ')


@pytest.mark.parametrize('glob', ['sub', 'sub/', 's*'])
def test_a_directory_is_refused_with_a_glob_that_is_right(
  tmp_path, monkeypatch, glob
):
  write(tmp_path, a_txt=b'a', sub__b_txt=b'b')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError) as info:
    find(glob)
  wanted = os.path.join(glob, '**')
  assert str(info.value) == (
    f'{glob!r}: matches directories but no file, allowed: globs of files such'
    f' as {wanted!r}'
  )
  assert find(wanted)[0].endswith('b.txt')


def test_a_link_to_a_directory_above_does_not_repeat_files(tmp_path):
  write(tmp_path, a_txt=b'a', sub__b_txt=b'b', sub__deep__c_txt=b'c')
  # Two of them make 2 to the power of 40 paths.
  (tmp_path / 'sub' / 'up').symlink_to('..')
  (tmp_path / 'sub' / 'deep' / 'up').symlink_to('../..')
  assert find(f'{tmp_path}/**') == ['a.txt', 'sub/b.txt', 'sub/deep/c.txt']
  assert find(f'{tmp_path}/**/**/*.txt') == find(f'{tmp_path}/**')
  assert find(f'{tmp_path}/**/b.txt') == ['sub/b.txt']


def test_a_file_of_several_paths_is_one_document(tmp_path):
  write(tmp_path, real__m_txt=b'm', real__n_txt=b'n')
  os.link(tmp_path / 'real' / 'm.txt', tmp_path / 'real' / 'o.txt')
  (tmp_path / 'a').symlink_to('real')
  (tmp_path / 'b.txt').symlink_to('real/n.txt')
  expected = ['real/m.txt', 'real/n.txt']
  assert find(f'{tmp_path}/**') == expected
  assert find(f'{tmp_path}/*,{tmp_path}/*/*') == ['b.txt', 'real/m.txt']
  # A link is followed where no other path leads.
  assert find(f'{tmp_path}/a/**') == ['m.txt', 'n.txt']
  outside = write(tmp_path / 'outside', c_txt=b'c')
  inside = write(tmp_path / 'inside', d_txt=b'd')
  (inside / 'link').symlink_to(outside)
  assert find(f'{inside}/**') == ['d.txt', 'link/c.txt']
  assert find(f'{inside}/**/*.txt') == ['d.txt', 'link/c.txt']


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_validation_of_links_to_training_files_is_refused(tmp_path, link):
  write(tmp_path, train__a_txt=b'a' * 99, train__b_jsonl=b'{"text": "b"}')
  (tmp_path / 'validation').mkdir()
  for name in ('a.txt', 'b.jsonl'):
    link(tmp_path / 'train' / name, tmp_path / 'validation' / name)
  for raw in ('', 'raw:'):
    config = data_config(
      train=f'{tmp_path}/train/*', validation=f'{raw}{tmp_path}/validation/*'
    )
    with pytest.raises(ValueError, match='2 of its 2 documents are in data'):
      pipeline.open_data(config, max_documents=3)


def test_two_names_of_a_file_in_parts_of_a_mixture_are_noticed(tmp_path):
  for number in range(40):
    write(tmp_path, **{f'a__{number}_txt': b'%d' % number})
  (tmp_path / 'b').mkdir()
  for number in range(40):
    os.link(tmp_path / f'a/{number}.txt', tmp_path / f'b/x{number}.txt')
  config = data_config(
    train=f'1:{tmp_path}/a/*;1:{tmp_path}/b/*', validation_fraction=0.3
  )
  with pytest.raises(ValueError, match=r'held out of a part of the mixture'):
    pipeline.open_data(config, max_documents=3)


@pytest.mark.parametrize('name', ['a[1]', 'a]', 'a[', 'a?', 'a*', '[!a]', '**'])
def test_a_directory_of_any_name_can_be_the_working_directory(
  tmp_path, monkeypatch, name
):
  write(tmp_path / name, x_txt=b'x', sub__y_txt=b'y')
  # This one matches if the name is taken for a glob.
  write(tmp_path / 'a1', x_txt=b'wrong')
  monkeypatch.chdir(tmp_path / name)
  monkeypatch.setenv('HOME', str(tmp_path / name))
  for pattern in ('x.txt', '*.txt', '~/x.txt', './*', f'../{name}/x.txt'):
    documents = sources.find_documents(pattern)
    assert contents(documents) == [b'x'], pattern
    assert names(documents) == ['x.txt']
  assert find('**/*.txt') == ['sub/y.txt', 'x.txt']


@pytest.mark.parametrize('name', ['a[1].txt', 'a].txt', '[a.txt', 'a?', '*'])
def test_a_path_that_is_a_file_is_found(tmp_path, name):
  (tmp_path / name).write_bytes(b'x')
  assert find(tmp_path / name) == [name]


def test_brackets_that_exist_as_written_stand_for_themselves(tmp_path):
  write(tmp_path, a1__x_txt=b'1')
  write(tmp_path / 'a[1]', x_txt=b'2')
  (tmp_path / 'b1').write_bytes(b'3')
  (tmp_path / 'b[1]').write_bytes(b'4')
  for pattern, expected in (
    ('a[1]/*', b'2'),
    ('a[1]/x.txt', b'2'),
    ('a[[]1]/*', b'2'),
    ('a[1-1]/*', b'1'),
    ('b[1]', b'4'),
    ('b[12]', b'3'),
  ):
    documents = sources.find_documents(f'{tmp_path}/{pattern}')
    assert contents(documents) == [expected], pattern


def test_hidden_files_need_the_dot(tmp_path):
  write(tmp_path, a_txt=b'a')
  for path in ('.b', '.c/d', 'e/.f'):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(b'x')
  assert find(f'{tmp_path}/**') == ['a.txt']
  assert find(f'{tmp_path}/.*') == ['.b']
  assert find(f'{tmp_path}/.c/**') == ['d']
  assert find(f'{tmp_path}/**/.*') == ['.b', 'e/.f']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_directory_that_cannot_be_read_is_said(tmp_path):
  write(tmp_path, a_txt=b'a', sub__b_txt=b'b')
  (tmp_path / 'sub').chmod(0)
  skipped = Skipped()
  globs.find_files(f'{tmp_path}/**', skipped)
  assert str(skipped).startswith('unreadable directories: 1')


def test_a_directory_that_fails_in_between_is_said(tmp_path, monkeypatch):
  write(tmp_path, a_txt=b'a', sub__b_txt=b'b')
  scandir = os.scandir

  def fail(path):
    if str(path).endswith('sub'):
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', fail)
  skipped = Skipped()
  found = globs.find_files(f'{tmp_path}/**', skipped)
  assert [name for _, name in found.values()] == ['a.txt']
  assert str(skipped) == (
    f'unreadable directories: 1 (the first is {tmp_path}/sub)'
  )
