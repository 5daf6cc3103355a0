import lzma

import pytest

from abstractinator.benchmarks import compress
from abstractinator.evaluation.evaluator import open_run
from tests.helpers import tiny_run

DATA = b'A text that repeats, a text that repeats. ' * 9


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tiny_run.saved(tmp_path_factory)


@pytest.fixture(scope='module')
def evaluator(workdir):
  return open_run(workdir)


def test_every_way_has_a_row(evaluator, monkeypatch):
  monkeypatch.setattr(compress.shutil, 'which', lambda name: None)
  found = {row['by']: row for row in compress.rows(evaluator, DATA, lanes=4)}
  assert len(found) == 7
  size = len(lzma.compress(DATA, preset=9 | lzma.PRESET_EXTREME))
  assert found['`xz -9e`']['bytes'] == size
  assert found['`xz -9e`']['bits/byte'] == 8 * size / len(DATA)
  # Of an untrained model; the file is of four lanes with a header.
  model = found['entropy model (likelihood)']['bytes']
  assert model < found['`abstractinator compress`']['bytes'] < 1.3 * model + 200
  bound = found['codes, ends and bytes of segments (bound)']['bytes']
  written = found['`abstractinator compress --model hierarchy`']['bytes']
  # What the model makes larger is kept as it is.
  assert len(DATA) < written < min(bound, len(DATA) + 120)


def test_the_command_prints_a_table(workdir, monkeypatch, capsys):
  def rows(evaluator, data, lanes):
    return [{'by': 'nothing', 'bytes': len(data), 'lanes': lanes}]

  monkeypatch.setattr(compress, 'rows', rows)
  compress.main([workdir, '--max_bytes=300', '--lanes=2'])
  out = capsys.readouterr().out
  assert '300 bytes' in out
  assert '| nothing |   300 |     2 |' in out


def test_a_file_that_reads_as_another_text_is_an_error(evaluator, monkeypatch):
  monkeypatch.setattr(compress.codec, 'decompress', lambda model, file: b'no')
  with pytest.raises(ValueError, match='reads as another text'):
    compress.rows(evaluator, DATA, lanes=4)
