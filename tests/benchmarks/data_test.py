import pathlib

import pytest

from abstractinator.benchmarks import data
from abstractinator.data.sources import find_documents
from tests.helpers import tiny_run

TEXTS = [b'one', 'zwü'.encode(), b'three' * 50]


@pytest.mark.parametrize('name', data.FORMATS)
def test_every_format_holds_the_corpus(name, tmp_path):
  documents = find_documents(data.FORMATS[name](TEXTS, pathlib.Path(tmp_path)))
  assert documents.num_documents == len(TEXTS)
  assert bytes(list(documents.read(0, 0, 3))) == b'one'
  assert data.pipeline_speed(tiny_run.config(), documents, 0.02) > 0


def test_the_table_has_the_ratio():
  found = [data.Measurement('files', 3, 0.5, 2e6, 40.0)]
  *_, row, _, last = data.table(found, 5e4).splitlines()
  assert [cell.strip() for cell in row.split('|')[1:-1]] == [
    'files',
    '3',
    '0.5',
    '2',
    '40',
  ]
  assert last == 'a step takes 0.0500 MB/s'


def test_a_wrong_format(capsys):
  with pytest.raises(SystemExit):
    data.main(['--formats=files,xml'])
  error = capsys.readouterr().err
  assert "--formats: got 'xml', allowed: files, jsonl" in error
