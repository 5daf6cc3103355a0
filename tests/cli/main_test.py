"""The program: help, input, output and errors of all commands."""

import argparse
import io
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import abstractinator
from abstractinator.cli import main as main_module
from abstractinator.cli.main import main
from abstractinator.codes.codes import Codes
from tests.helpers import tiny_run
from tests.helpers.tiny_run import TEXT, WAITS


def test_a_file_is_replaced_by_force_alone(
  workdir, pyramid, file, tmp_path, capsys
):
  out, codes = tmp_path / 'out', tmp_path / 'codes.npz'
  assert main(['encode', workdir, file, f'--out={codes}']) == 0
  for args in (
    ['decode', workdir, str(codes), f'--out={out}'],
    ['view', workdir, file, f'--html={out}'],
  ):
    out.write_bytes(b'kept')
    assert main(args) == 2
    assert 'or --force to replace a file' in capsys.readouterr().err
    assert out.read_bytes() == b'kept'
    assert main([*args, '--force']) == 0
    assert out.read_bytes() != b'kept'
  assert main(['encode', workdir, file, f'--out={codes}', '--force']) == 0
  (read,) = abstractinator.read_codes(str(codes))
  assert read.codes_N.tolist() == pyramid.encode(TEXT).codes_N.tolist()
  # A directory is never replaced.
  assert main(['view', workdir, file, f'--html={tmp_path}', '--force']) == 2


def run(*args, stdin=TEXT, **env):
  return subprocess.run(
    [sys.executable, '-m', 'abstractinator', *args],
    input=stdin,
    capture_output=True,
    env={**os.environ, **env},
  )


def test_process_reads_stdin_and_says_what_it_waits_for(
  workdir, file, capsys, monkeypatch
):
  assert main(['segment', workdir, file]) == 0
  expected = capsys.readouterr().out
  process = run('segment', workdir)
  assert process.stdout == expected.encode()
  # Libraries say nothing.
  waits = WAITS.replace('RUN', workdir).encode()
  assert (process.returncode, process.stderr) == (0, waits)
  stdin = type('', (), {'buffer': io.BytesIO(TEXT)})
  monkeypatch.setattr(sys, 'stdin', stdin)
  assert main(['segment', workdir, '-']) == 0
  assert capsys.readouterr().out == expected


def test_help_lists_commands_and_defaults(capsys, monkeypatch):
  def help_of(*args):
    with pytest.raises(SystemExit) as stop:
      main([*args, '--help'])
    assert stop.value.code == 0
    return capsys.readouterr().out

  monkeypatch.setenv('COLUMNS', '1000')
  general = help_of()
  assert main([]) == 0
  assert capsys.readouterr().out.strip() == general.strip()
  commands = dict(re.findall(r'\n    (\S+)\s+([A-Z].*)', general))
  assert len(commands) == 14
  assert commands['segment'] == 'Prints the segments of a text.'
  for name, about in commands.items():
    assert about in help_of(name)
    assert f'example: abstractinator {name} ' in help_of(name)
    has_step = name not in ('train', 'compare', 'plan')
    assert ('default: the latest one' in help_of(name)) == has_step
  assert 'ends; default: 256' in help_of('generate')
  assert 'configs/default.py' in help_of('train')


@pytest.mark.parametrize('name', main_module._COMMANDS)
def test_an_example_is_a_command_and_an_option_says_its_default(name):
  module = main_module._module(name)
  _, first, *args = shlex.split(module.EXAMPLE)
  parser = argparse.ArgumentParser(allow_abbrev=False)
  module.add_arguments(parser)
  _, rest = parser.parse_known_intermixed_args(args)
  assert first == name
  assert all(arg.startswith('--config.') for arg in rest)
  for action in parser._actions:
    is_flag = action.nargs == 0 or action.required
    assert is_flag or 'default: ' in action.help, action.dest


def test_a_file_may_stand_after_options(workdir, file, capsys):
  assert main(['segment', workdir, file, '--separator=<>']) == 0
  expected = capsys.readouterr().out
  for args in (
    ['segment', '--separator=<>', workdir, file],
    ['segment', workdir, '--separator', '<>', file],
  ):
    assert main(args) == 0
    assert capsys.readouterr().out == expected


def test_the_version(capsys):
  with pytest.raises(SystemExit) as stop:
    main(['--version'])
  assert stop.value.code == 0
  assert capsys.readouterr().out == (
    f'abstractinator {abstractinator.__version__}\n'
  )


def test_a_terminal_without_the_characters(workdir, file, monkeypatch):
  out = io.BytesIO()
  # As PYTHONIOENCODING makes it.
  monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(out, encoding='ascii'))
  assert main(['segment', workdir, file]) == 0
  sys.stdout.flush()
  assert b'Zweite' in out.getvalue().replace(b'|', b'')
  assert out.getvalue().isascii()


def test_a_reader_that_leaves_is_no_error(workdir):
  command = f'"{sys.executable}" -m abstractinator segment "{workdir}" | true'
  process = subprocess.run(
    ['bash', '-o', 'pipefail', '-c', command], input=TEXT, capture_output=True
  )
  assert process.returncode == 0
  assert b'Error' not in process.stderr


def test_bad_input_of_a_process(tmp_path):
  """jax and orbax print nothing before or after the line."""
  process = run('segment', str(tmp_path))
  wait, line = process.stderr.decode().splitlines()
  assert wait == f'loading {tmp_path}'
  assert line.startswith('abstractinator: error: ')
  assert 'no checkpoint there' in line
  assert (process.returncode, process.stdout) == (2, b'')


def test_output_on_a_full_disk_is_told_in_a_line(workdir):
  with open('/dev/full', 'wb') as full:
    process = subprocess.run(
      [sys.executable, '-m', 'abstractinator', 'segment', workdir],
      input=TEXT,
      stdout=full,
      stderr=subprocess.PIPE,
    )
  # The first line says what the command waits for.
  *_, line = process.stderr.decode().splitlines()
  assert line.startswith('abstractinator: error: ')
  assert 'No space left on device' in line
  assert process.returncode == 2


@pytest.mark.parametrize(
  ('command', 'platform'), [('segment', 'nowhere'), ('train', 'cuda')]
)
def test_a_platform_that_is_not_there(workdir, tmp_path, command, platform):
  args = {
    'segment': [workdir],
    'train': ['--config=tiny', f'--workdir={tmp_path / "run"}'],
  }
  process = run(command, *args[command], JAX_PLATFORMS=platform)
  # The first lines say what the command waits for.
  *_, line = process.stderr.decode().splitlines()
  assert 'Traceback' not in process.stderr.decode()
  assert line.startswith('abstractinator: error: JAX_PLATFORMS: got ')
  assert f"'{platform}'" in line
  assert "pip install 'abstractinator[cuda13]'" in line
  assert (process.returncode, process.stdout) == (2, b'')


def test_home_directory_in_paths(workdir, file, monkeypatch, capsys):
  monkeypatch.setenv('HOME', os.path.dirname(workdir))
  short = f'~/{os.path.basename(workdir)}'
  assert main(['segment', short, file]) == 0
  expected = capsys.readouterr().out
  assert main(['segment', workdir, file]) == 0
  assert capsys.readouterr().out == expected
  assert main(['view', workdir, file, '--html=~/absent/x']) == 2
  assert f'{os.path.dirname(workdir)}/absent' in capsys.readouterr().err


def test_nothing_on_stdin(workdir):
  process = run('segment', workdir, stdin=b'')
  assert process.returncode == 2
  assert process.stderr == (
    b'abstractinator: error: standard input: is empty, allowed: at least 1'
    b' byte\n'
  )


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    ('segment nowhere FILE', "got 'nowhere', allowed: the directory"),
    ('segment EMPTY FILE', 'no checkpoint there'),
    ('segment RUN absent', "No such file or directory: 'absent'"),
    ('segment RUN EMPTY', 'Is a directory'),
    (f'segment RUN {os.devnull}', f'{os.devnull}: is empty'),
    ('reconstruct RUN FILE --step=4', 'got step 4, allowed: 3'),
    ('reconstruct RUN FILE --step=x', "--step: invalid int value: 'x'"),
    ('reconstruct RUN FILE --jsn', '--jsn: unknown argument, allowed: --json'),
    ('reconstruct RUN FILE more', 'more: unknown argument, allowed: those of'),
    ('reconstruct DAMAGED FILE', 'this checkpoint is damaged'),
    ('view RUN absent FILE --html=x', "got 'absent', allowed: the directory"),
    ('view RUN RUN RUN FILE --html=x', 'allowed: one run beside the first'),
    ('split RUN FILE', "invalid choice: 'split'"),
    ('encode RUN FILE --data=FILE', 'as well, allowed: one of them'),
    ('encode RUN FILE --shard_bytes=9', 'allowed: only with --data'),
    ('encode RUN FILE --format=npz', '--format: got npz, allowed'),
    (
      'encode RUN --data=FILE --shard_bytes=0',
      '--shard_bytes: got 0, allowed: at least 1',
    ),
    (
      'encode RUN --data=FILE --shard_bytes=x',
      '--shard_bytes: got x, allowed: at least 1',
    ),
    ('encode RUN FILE --level=1', 'level: got 1, allowed: 0 to 0'),
    ('encode RUN FILE --out=a.txt', "ends in '.txt', allowed: .npz"),
    ('encode RUN --data=IDS.npy --out=out', 'IDS.npy: holds an array of ids'),
    ('evaluate RUN --data=IDS.npy', 'IDS.npy: holds an array of ids, allowed'),
    ('decode RUN BAD', "ends in '', allowed: .npz or .parquet"),
    ('decode RUN BAD.npz', 'is no file of codes, allowed: what'),
    ('decode RUN BAD.parquet', 'is no file of codes, allowed: what'),
    ('decode RUN FLOAT.npz', 'is no file of codes, allowed: what'),
    ('decode RUN HIGH.npz', 'codes: got 64, allowed: 0 to 63'),
    ('decode RUN LEVEL.npz', 'level: got 3, allowed: 0 to 0'),
    ('generate RUN', 'prompt: got no bytes, allowed: at least 1'),
    ('generate RUN --prompt=a --top_p=2', 'top_p: got 2.0, allowed'),
    ('generate RUN --prompt=a --max_bytes=0', 'allowed: 1 to 2^24'),
    ('generate RUN --prompt=a --stop=', "stop: got b'', allowed"),
    ('generate nowhere --prompt=a', "got 'nowhere', allowed"),
  ],
)
def test_bad_input_is_answered_in_one_line(
  command, message, workdir, file, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  os.mkdir('EMPTY')
  write_bad_files()
  damaged = str(tmp_path / 'damaged')
  if 'DAMAGED' in command:
    tiny_run.save(damaged, tiny_run.config())
    truncate_files(os.path.join(damaged, 'checkpoints', '3', 'state'))
  paths = {'RUN': workdir, 'FILE': file, 'DAMAGED': damaged}
  capsys.readouterr()
  status = main([paths.get(arg, arg) for arg in command.split()])
  out, err = capsys.readouterr()
  assert (status, out) == (2, '')
  *waits, line = err.splitlines()
  said = ('loading ', 'evaluating ', '82,048 parameters of step 3, compiling')
  assert all(wait.startswith(said) for wait in waits)
  assert line.startswith('abstractinator: error: ')
  assert message in line


def write_bad_files():
  for name in ('BAD', 'BAD.npz', 'BAD.parquet'):
    with open(name, 'wb') as file:
      file.write(b'no codes')
  np.save('IDS.npy', np.arange(100))
  one = np.array([1])
  abstractinator.write_codes('HIGH.npz', [Codes(np.array([64]), one)])
  abstractinator.write_codes('LEVEL.npz', [Codes(np.array([0]), one, 3)])
  one_row = dict(num_rows_T=one, level=0, queries=1)
  np.savez('FLOAT.npz', codes_N=np.array([0.5]), count_B=one, **one_row)


def truncate_files(directory):
  for folder, _, names in os.walk(directory):
    for name in names:
      os.truncate(os.path.join(folder, name), 0)
