"""`abstractinator generate`, `encode` and `decode`."""

import io
import json
import sys

import numpy as np
import pytest

import abstractinator
from abstractinator import inference
from abstractinator.cli import generate
from abstractinator.cli.main import main
from abstractinator.codes.codes import Codes
from tests.helpers import tiny_run

TEXT = 'Grüße: ein Text, geteilt.'.encode()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  tiny_run.save(path, tiny_run.config())
  return str(path)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
  """Two sizes of batches, of 32 ids a row, are quicker to compile."""
  monkeypatch.setattr(inference, '_BATCH_IDS', 2 * 32)


def show(data):
  return data.decode('utf-8', errors='backslashreplace')


def test_generate_prints_what_python_returns(workdir, capsys):
  level = abstractinator.load(workdir)
  options = ['--max_bytes=20', '--temperature=0.9', '--seed=5']
  kwargs = {'max_new_bytes': 20, 'temperature': 0.9, 'seed': 5}
  ((text,),) = level.generate(b'ab', **kwargs)
  assert main(['generate', workdir, '--prompt=ab', *options]) == 0
  assert capsys.readouterr().out == 'ab' + show(text) + '\n'
  args = ['generate', workdir, '--prompt=ab', '--prompt=c\udcff', *options]
  assert main([*args, '--num_samples=2', '--json']) == 0
  samples = level.generate([b'ab', b'c\xff'], **kwargs, num_samples=2)
  assert json.loads(capsys.readouterr().out) == [
    {'prompt': prompt, 'texts': list(map(show, texts))}
    for prompt, texts in zip(['ab', 'c\\xff'], samples, strict=True)
  ]
  assert samples[0][0] == text


def test_a_character_may_begin_in_the_prompt():
  class Level:
    def stream(self, prompt):
      assert prompt == b'a\xc3'
      yield from (b'\xbcb', b'\xe2\x82', b'\xac', b'\xff\xe2')

  shown = list(generate._stream(Level(), b'a\xc3', {}))
  assert ''.join(shown) == 'aüb€\\xff\\xe2\n'


@pytest.mark.parametrize('name', ['codes.npz', 'codes.parquet'])
def test_codes_go_to_files_and_back(workdir, name, tmp_path, capsys):
  level = abstractinator.load(workdir)
  text, path, out = (str(tmp_path / x) for x in ('text', name, 'back'))
  with open(text, 'wb') as file:
    file.write(TEXT * 3)
  assert main(['encode', workdir, text, f'--out={path}']) == 0
  codes = level.encode(TEXT * 3)
  (read,) = abstractinator.read_codes(path)
  np.testing.assert_array_equal(read.codes_N, codes.codes_N)
  np.testing.assert_array_equal(read.count_B, codes.count_B)
  capsys.readouterr()
  assert main(['decode', workdir, path, '--json']) == 0
  decoded = level.decode(codes)
  assert json.loads(capsys.readouterr().out) == [show(decoded)]
  assert main(['decode', workdir, path, f'--out={out}']) == 0
  with open(out, 'rb') as file:
    assert file.read() == decoded
  capsys.readouterr()
  for args in (['encode', workdir, text], ['decode', workdir, path]):
    assert main([*args, f'--out={out}']) == 2
    assert f'{out}: exists, allowed: ' in capsys.readouterr().err
  assert main(['encode', workdir, text]) == 0
  printed = capsys.readouterr().out
  assert list(map(int, printed.split())) == codes.codes_N.tolist()


@pytest.mark.parametrize('name', ['codes.npz', 'codes.parquet'])
def test_files_hold_codes_of_several_texts(name, tmp_path):
  path = str(tmp_path / name)
  parts = [
    Codes(np.arange(6), np.array([1, 2]), 1),
    Codes(np.zeros(0, np.int32), np.zeros(0, np.int32), 1),
    Codes(np.arange(4) + 9, np.array([2]), 1),
  ]
  abstractinator.write_codes(path, parts)
  for want, got in zip(parts, abstractinator.read_codes(path), strict=True):
    assert got.level == 1
    assert got.codes_N.tolist() == want.codes_N.tolist()
    assert got.count_B.tolist() == want.count_B.tolist()


def test_texts_together_are_as_each_alone(workdir):
  level = abstractinator.load(workdir)
  texts = [TEXT, TEXT * 3, b'x']
  codes = level.encode_all(texts)
  for text, of_text in zip(texts, codes, strict=True):
    alone = level.encode(text)
    assert of_text.codes_N.tolist() == alone.codes_N.tolist()
    assert of_text.count_B.tolist() == alone.count_B.tolist()
  decoded = level.decode_all(codes)
  assert decoded == [level.decode(x) for x in codes]
  together = level.reconstruct_all(texts)
  assert together == [level.reconstruct(text) for text in texts]
  assert [x.text for x in together] == decoded


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['generate', 'RUN'], 'prompt: got no bytes, allowed: at least 1'),
    (['generate', 'RUN', '--prompt=a', '--top_p=2'], 'top_p: got 2.0, allowed'),
    (['generate', 'RUN', '--prompt=a', '--max_bytes=0'], 'allowed: 1 to 2^24'),
    (['generate', 'RUN', '--prompt=a', '--stop='], "stop: got b'', allowed"),
    (['generate', 'nowhere', '--prompt=a'], "got 'nowhere', allowed"),
    (['encode', 'RUN', 'FILE', '--level=1'], 'level: got 1, allowed: 0 to 0'),
    (['encode', 'RUN', 'FILE', '--out=a.txt'], "ends in '.txt', allowed: .npz"),
    (['decode', 'RUN', 'FILE'], "ends in '', allowed: .npz or .parquet"),
    (['decode', 'RUN', 'BAD.npz'], 'is no file of codes, allowed: what'),
    (['decode', 'RUN', 'BAD.parquet'], 'is no file of codes, allowed: what'),
    (['decode', 'RUN', 'FLOAT.npz'], 'is no file of codes, allowed: what'),
    (['decode', 'RUN', 'HIGH.npz'], 'codes: got 64, allowed: 0 to 63'),
    (['decode', 'RUN', 'LEVEL.npz'], 'level: got 3, allowed: 0 to 0'),
  ],
)
def test_bad_input_is_answered_in_one_line(
  args, message, workdir, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  for name in ('FILE', 'BAD.npz', 'BAD.parquet'):
    (tmp_path / name).write_bytes(b'no codes')
  one = np.array([1])
  abstractinator.write_codes('HIGH.npz', [Codes(np.array([64]), one)])
  one_row = dict(num_rows_T=np.array([1]), level=0, queries=1)
  np.savez('FLOAT.npz', codes_N=np.array([0.5]), count_B=one, **one_row)
  abstractinator.write_codes('LEVEL.npz', [Codes(np.array([0]), one, 3)])
  status = main([workdir if arg == 'RUN' else arg for arg in args])
  out, err = capsys.readouterr()
  assert (status, out) == (2, '')
  (line,) = err.splitlines()
  assert line.startswith('abstractinator: error: ')
  assert message in line


def test_prompts_from_standard_input_and_a_warning(
  workdir, monkeypatch, capsys
):
  data = io.BytesIO(b'ab')
  monkeypatch.setattr(sys, 'stdin', type('', (), {'buffer': data}))
  args = ['--max_bytes=20', '--temperature=0.9', '--seed=5']
  assert main(['generate', workdir, '--prompt_file=-', *args]) == 0
  from_stdin = capsys.readouterr().out
  assert main(['generate', workdir, '--prompt=ab', *args]) == 0
  assert capsys.readouterr().out == from_stdin
