import lzma

import pytest

from abstractinator.benchmarks import compress
from abstractinator.evaluation.evaluator import open_run
from tests.helpers import tiny_run


def test_every_way_has_a_row(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(compress.shutil, 'which', lambda name: None)
  tiny_run.save(tmp_path, tiny_run.config())
  evaluator = open_run(str(tmp_path))
  data = b'A text that repeats, a text that repeats. ' * 9
  found = {row['by']: row for row in compress.rows(evaluator, data, lanes=4)}
  assert len(found) == 7
  size = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
  assert found['`xz -9e`']['bytes'] == size
  assert found['`xz -9e`']['bits/byte'] == 8 * size / len(data)
  # Of an untrained model; the file is of four lanes with a header.
  model = found['entropy model (likelihood)']['bytes']
  assert model < found['`abstractinator compress`']['bytes'] < 1.3 * model + 200
  bound = found['codes, ends and bytes of segments (bound)']['bytes']
  written = found['`abstractinator compress --model hierarchy`']['bytes']
  # What the model makes larger is kept as it is.
  assert len(data) < written < min(bound, len(data) + 120)


def test_the_command_prints_a_table(tmp_path, capsys):
  tiny_run.save(tmp_path, tiny_run.config())
  compress.main([str(tmp_path), '--max_bytes=300', '--lanes=2'])
  out = capsys.readouterr().out
  assert '300 bytes' in out
  assert '| `abstractinator compress` ' in out


def test_a_file_that_reads_as_another_text_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(compress.codec, 'decompress', lambda model, file: b'no')
  tiny_run.save(tmp_path, tiny_run.config())
  evaluator = open_run(str(tmp_path))
  with pytest.raises(ValueError, match='reads as another text'):
    compress.rows(evaluator, b'A text.' * 9, lanes=1)
