"""The command view; tests/view looks at its page."""

import os

from abstractinator import inference
from abstractinator.cli.main import main
from tests.helpers.tiny_run import TEXT


def test_view_writes_a_page_once(workdir, pyramid, file, tmp_path, capsys):
  page = tmp_path / 'page.html'
  assert main(['view', workdir, file, '--html', str(page)]) == 0
  segments = pyramid.inspect(TEXT).levels[0].lengths_P
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(
    f'{page}: {len(TEXT)} bytes in {len(segments)} segments, '
  )
  content = page.read_bytes()
  assert main(['view', workdir, file, '--html', str(page)]) == 2
  assert 'exists, allowed: ' in capsys.readouterr().err
  assert page.read_bytes() == content
  for data in (b'text.txt', f'"run":"{workdir}","step":3'.encode()):
    assert data in content


def test_view_sets_a_run_beside_another(
  workdir, pyramid, file, tmp_path, monkeypatch, capsys
):
  # The same pyramid for both, so that nothing is compiled twice.
  loaded = []
  monkeypatch.setattr(
    inference, 'load', lambda *args: loaded.append(args) or pyramid
  )
  other, page = 'OTHER', tmp_path / 'page.html'
  args = ['view', workdir, other, file, '--html', str(page)]
  assert main(args) == 0
  assert loaded == [(workdir, None), (other, None)]
  (line,) = capsys.readouterr().out.splitlines()
  assert line.count(f'{len(TEXT)} bytes in ') == 2
  left, right = page.read_bytes().split(b'<iframe ')[1:]
  for path, frame in ((workdir, left), (other, right)):
    assert f'&quot;run&quot;:&quot;{path}&quot;'.encode() in frame


def test_a_page_of_a_file_whose_name_is_not_utf8(workdir, tmp_path):
  path = os.path.join(os.fsencode(tmp_path), b'a\xff.txt')
  with open(path, 'wb') as file:
    file.write(TEXT)
  page = tmp_path / 'page.html'
  assert main(['view', workdir, os.fsdecode(path), '--html', str(page)]) == 0
  assert b'a\\\\xff.txt' in page.read_bytes()
