import json

import pytest

from abstractinator.benchmarks import data
from abstractinator.data.sources import find_documents
from tests.helpers import tiny_run

TEXTS = [b'one', 'zwü'.encode(), b'three' * 50]


@pytest.mark.parametrize('name', data.FORMATS)
def test_every_format_holds_the_documents(name, tmp_path):
  documents = find_documents(data.write(name, TEXTS, tmp_path))
  found = [bytes([*x.read(0, x.length)]) for x in documents]
  assert sorted(found) == sorted(TEXTS)
  assert data.read_speed(tiny_run.config(), documents, 0.02) > 0


def test_formats_are_compared_with_a_step(tmp_path, capsys):
  path = tmp_path / 'rows.jsonl'
  argv = ['--config=tiny', '--formats', 'jsonl', '--seconds=0.1', '--steps=1']
  data.main([*argv, f'--json={path}'])
  (row,) = [json.loads(line) for line in path.read_text().splitlines()]
  assert row['format'] == 'jsonl'
  assert row['documents'] > 100
  last = capsys.readouterr().out.splitlines()[-1]
  speed = float(last.removeprefix('a step takes ').removesuffix(' MB/s'))
  assert row['times a step'] == pytest.approx(row['MB/s'] / speed, rel=0.05)


def test_a_wrong_format_is_an_error_of_the_command(capsys):
  with pytest.raises(SystemExit, match='2'):
    data.main(['--formats', 'txt', 'xml'])
  assert "invalid choice: 'xml'" in capsys.readouterr().err
