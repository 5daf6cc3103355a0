"""Commands that write and read codes: encode, decode."""

import json
import os

import numpy as np
import pytest

import abstractinator
from abstractinator.cli.common import show
from abstractinator.cli.main import main
from abstractinator.codes.codes import Codes
from abstractinator.runs.lock import Lock
from tests.helpers.tiny_run import TEXT


@pytest.mark.parametrize('name', ['codes.npz', 'codes.parquet'])
def test_codes_go_to_files_and_back(
  workdir, pyramid, file, name, tmp_path, capsys
):
  path, out = (str(tmp_path / x) for x in (name, 'back'))
  assert main(['encode', workdir, file, f'--out={path}']) == 0
  codes = pyramid.encode(TEXT)
  (read,) = abstractinator.read_codes(path)
  np.testing.assert_array_equal(read.codes_N, codes.codes_N)
  np.testing.assert_array_equal(read.count_B, codes.count_B)
  capsys.readouterr()
  assert main(['decode', workdir, path, '--json']) == 0
  decoded = pyramid.decode(codes)
  assert json.loads(capsys.readouterr().out) == [show(decoded)]
  assert main(['decode', workdir, path, f'--out={out}']) == 0
  with open(out, 'rb') as written:
    assert written.read() == decoded
  capsys.readouterr()
  for args in (['encode', workdir, file], ['decode', workdir, path]):
    assert main([*args, f'--out={out}']) == 2
    assert f'{out}: exists, allowed: ' in capsys.readouterr().err
  assert main(['encode', workdir, file]) == 0
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


def test_two_processes_do_not_encode_into_one_directory(
  workdir, file, tmp_path, capsys
):
  out = str(tmp_path / 'codes')
  args = ['encode', workdir, f'--data={file}', f'--out={out}']
  with Lock(out):
    assert main(args) == 2
    assert f'{out}: process {os.getpid()} on ' in capsys.readouterr().err
  assert not os.path.exists(out)
  assert main(args) == 0
  assert sorted(os.listdir(out)) == ['00000.parquet', 'manifest.json']
