import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import abstractinator
from abstractinator.cli.main import main
from tests.helpers import tiny_run

TEXT = 'Grüße: ein Text, geteilt.\nZweite Zeile\x00'.encode()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  tiny_run.save(path, tiny_run.config())
  return str(path)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(TEXT)
  return str(path)


def show(data):
  return data.decode('utf-8', errors='backslashreplace')


def test_segment_prints_the_text_divided(workdir, file, capsys):
  segments = abstractinator.load(workdir).segment(TEXT)
  assert main(['segment', workdir, file]) == 0
  assert capsys.readouterr() == ('|'.join(map(show, segments)) + '\n', '')
  assert main(['segment', workdir, file, '--separator=<>']) == 0
  assert capsys.readouterr().out == '<>'.join(map(show, segments)) + '\n'


def test_segment_as_json(workdir, tmp_path, capsys):
  data = bytes(range(256)) + np.random.default_rng(0).bytes(300)
  path = tmp_path / 'any'
  path.write_bytes(data)
  assert main(['segment', workdir, str(path), '--json']) == 0
  segments = abstractinator.load(workdir).segment(data)
  assert json.loads(capsys.readouterr().out) == list(map(show, segments))


def test_reconstruct_prints_text_and_accuracy(workdir, file, capsys):
  result = abstractinator.load(workdir).reconstruct(TEXT)
  assert main(['reconstruct', workdir, file]) == 0
  out = capsys.readouterr().out
  assert out.startswith(show(result.text) + '\n')
  assert out.splitlines()[-1] == (
    f'byte accuracy {result.byte_accuracy:.2%} free-running,'
    f' {result.teacher_forced_byte_accuracy:.2%} teacher-forced; {len(TEXT)}'
    f' bytes in {result.num_segments} segments,'
    f' {result.bytes_per_segment:.2f} bytes/segment'
  )
  assert main(['reconstruct', workdir, file, '--json']) == 0
  assert json.loads(capsys.readouterr().out) == {
    'text': show(result.text),
    'byte_accuracy': result.byte_accuracy,
    'teacher_forced_byte_accuracy': result.teacher_forced_byte_accuracy,
    'num_bytes': len(TEXT),
    'num_segments': result.num_segments,
    'bytes_per_segment': result.bytes_per_segment,
    'exact': result.exact,
  }


def run(*args, stdin=TEXT, **env):
  return subprocess.run(
    [sys.executable, '-m', 'abstractinator', *args],
    input=stdin,
    capture_output=True,
    env={**os.environ, **env},
  )


def test_process_reads_stdin_and_is_quiet(workdir, file, capsys, monkeypatch):
  assert main(['segment', workdir, file]) == 0
  expected = capsys.readouterr().out
  process = run('segment', workdir)
  assert process.stdout == expected.encode()
  assert (process.returncode, process.stderr) == (0, b'')
  stdin = type('', (), {'buffer': io.BytesIO(TEXT)})
  monkeypatch.setattr(sys, 'stdin', stdin)
  assert main(['segment', workdir, '-']) == 0
  assert capsys.readouterr().out == expected


def test_a_terminal_without_the_characters(workdir):
  process = run('segment', workdir, PYTHONIOENCODING='ascii')
  assert (process.returncode, process.stderr) == (0, b'')
  assert b'Zweite' in process.stdout.replace(b'|', b'')
  assert process.stdout.isascii()


def test_a_reader_that_leaves_is_no_error(workdir):
  command = f'"{sys.executable}" -m abstractinator segment "{workdir}" | true'
  process = subprocess.run(
    ['bash', '-o', 'pipefail', '-c', command], input=TEXT, capture_output=True
  )
  assert (process.returncode, process.stderr) == (0, b'')


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['segment', 'nowhere', 'FILE'], "got 'nowhere', allowed: the directory"),
    (['segment', 'EMPTY', 'FILE'], 'no checkpoint there'),
    (['segment', 'RUN', 'absent'], "No such file or directory: 'absent'"),
    (['segment', 'RUN', 'EMPTY'], 'Is a directory'),
    (['segment', 'RUN', os.devnull], f'{os.devnull}: is empty'),
    (['reconstruct', 'RUN', 'FILE', '--step=4'], 'got step 4, allowed: 3'),
    (['reconstruct', 'RUN', 'FILE', '--step=x'], "invalid int value: 'x'"),
    (['reconstruct', 'RUN', 'FILE', '--jsn'], 'unrecognized arguments: --jsn'),
    (['reconstruct', 'DAMAGED', 'FILE'], 'this checkpoint is damaged'),
    (['split', 'RUN', 'FILE'], "invalid choice: 'split'"),
    (['encode', 'RUN', 'FILE', '--data=FILE'], 'as well, allowed: one of them'),
    (['encode', 'RUN', 'FILE', '--shard_bytes=9'], 'allowed: only with --data'),
    (['encode', 'RUN', 'FILE', '--format=npz'], '--format: got npz, allowed'),
    (
      ['encode', 'RUN', '--data=FILE', '--shard_bytes=0'],
      '--shard_bytes: got 0, allowed: at least 1',
    ),
    ([], 'required: COMMAND'),
  ],
)
def test_bad_input_is_answered_in_one_line(
  args, message, workdir, file, tmp_path, capsys
):
  paths = {'RUN': workdir, 'FILE': file, 'EMPTY': str(tmp_path / 'empty')}
  os.mkdir(paths['EMPTY'])
  if 'DAMAGED' in args:
    paths['DAMAGED'] = str(tmp_path / 'damaged')
    tiny_run.save(paths['DAMAGED'], tiny_run.config())
    damage(os.path.join(paths['DAMAGED'], 'checkpoints', '3', 'state'))
  capsys.readouterr()
  try:
    status = main([paths.get(arg, arg) for arg in args])
  except SystemExit as stop:  # argparse's way
    status = stop.code
  out, err = capsys.readouterr()
  assert (status, out) == (2, '')
  (line,) = err.splitlines()
  assert line.startswith('abstractinator: error: ')
  assert message in line


def damage(directory):
  """Empties every file of a checkpoint's state."""
  for folder, _, names in os.walk(directory):
    for name in names:
      open(os.path.join(folder, name), 'w').close()


def test_bad_input_of_a_process(tmp_path):
  """Nothing of jax and orbax comes before or after the line."""
  process = run('segment', str(tmp_path))
  (line,) = process.stderr.decode().splitlines()
  assert line.startswith('abstractinator: error: ')
  assert 'no checkpoint there' in line
  assert (process.returncode, process.stdout) == (2, b'')


def test_nothing_on_stdin(workdir):
  process = run('segment', workdir, stdin=b'')
  assert process.returncode == 2
  assert process.stderr == (
    b'abstractinator: error: standard input: is empty, allowed: at least 1'
    b' byte\n'
  )


def test_view_writes_a_page_once(workdir, file, tmp_path, capsys):
  page = tmp_path / 'page.html'
  assert main(['view', workdir, file, '--html', str(page)]) == 0
  segments = abstractinator.load(workdir).inspect(TEXT).levels[0].lengths_P
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


def test_a_page_of_a_file_whose_name_is_not_utf8(workdir, tmp_path):
  path = os.path.join(os.fsencode(tmp_path), b'a\xff.txt')
  with open(path, 'wb') as file:
    file.write(TEXT)
  page = tmp_path / 'page.html'
  assert main(['view', workdir, os.fsdecode(path), '--html', str(page)]) == 0
  assert b'a\\\\xff.txt' in page.read_bytes()


@pytest.mark.parametrize('name', ['evaluate', 'encode'])
def test_arrays_of_ids_are_refused(name, workdir, tmp_path, capsys):
  np.save(tmp_path / 'a.npy', np.arange(100))
  args = [f'--data={tmp_path}/a.npy']
  if name == 'encode':
    args.append(f'--out={tmp_path}/codes')
  assert main([name, workdir, *args]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'a.npy: holds an array of ids, allowed: bytes' in line
