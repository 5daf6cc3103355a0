import lzma

import pytest

from abstractinator.benchmarks import primed
from abstractinator.cli import config_file

TEXT = b'To be, or not to be, that is the question.\n' * 3
OTHER = bytes(range(256))


def test_a_text_that_was_read_before_costs_little():
  again = primed.bits_per_byte(OTHER + TEXT, OTHER)
  first = primed.bits_per_byte(TEXT, OTHER)
  assert set(again) == {'xz -9e', 'PPMd order 6', 'PPMd order 8'}
  for name in again:
    assert again[name] < 0.5 * first[name]
  sizes = [
    len(lzma.compress(x, preset=9 | lzma.PRESET_EXTREME))
    for x in (TEXT, TEXT + OTHER)
  ]
  assert first['xz -9e'] == 8 * (sizes[1] - sizes[0]) / len(OTHER)


def test_without_its_package_ppmd_is_left_out_and_named(monkeypatch, capsys):
  monkeypatch.setattr(primed.importlib.util, 'find_spec', lambda name: None)
  assert set(primed.programs()) == {'xz -9e'}
  assert 'pip install abstractinator[ppmd]' in capsys.readouterr().err


@pytest.fixture
def data(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'first')
  (tmp_path / 'b.txt').write_bytes(b'second')
  (tmp_path / 'x.md').write_bytes(b'held')
  (tmp_path / 'y.md').write_bytes(b'out')
  return [f'data.train={tmp_path}/*.txt', f'data.validation={tmp_path}/*.md']


def test_texts_are_the_end_of_what_trains_and_all_that_is_held_out(
  data, monkeypatch
):
  found = []
  monkeypatch.setattr(primed, 'bits_per_byte', lambda *x: found.append(x))
  monkeypatch.setattr(primed, '_MAX_BYTES', 8)
  config = config_file.load('tiny', data).data
  primed.of_data(config)
  primed.of_data(config, max_documents=1)
  assert found == [(b'stsecond', b'heldout'), (b'stsecond', b'held')]


def test_the_command_prints_a_row_for_each_program(data, capsys):
  primed.main(['tiny', f'--set={data[0]}', f'--set={data[1]}'])
  assert '\n| PPMd order 6 | ' in capsys.readouterr().out


def test_a_corpus_that_is_not_there_is_refused(capsys):
  with pytest.raises(SystemExit, match='2'):
    primed.main(['tiny', '--set=data.train=/none/*'])
  assert '/none/*' in capsys.readouterr().err
