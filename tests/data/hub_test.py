"""Data sets of Hugging Face, from local files through its own builders."""

import json

import datasets
import pytest

from abstractinator.data import sources
from abstractinator.data.hub import hub_documents

TEXTS = ['one', 'zwü', 'three']


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


@pytest.fixture
def source(tmp_path):
  lines = [json.dumps({'body': text, 'id': i}) for i, text in enumerate(TEXTS)]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  return f'hf:json?data_files={tmp_path}/a.jsonl&field=body'


def read(documents):
  return [d.read(0, d.length).decode() for d in documents]


def test_a_data_set(source):
  documents = hub_documents(source)
  assert read(documents) == TEXTS
  assert [d.name for d in documents] == [f'json/train:{i}' for i in range(3)]
  assert documents[1].read(2, 4) == 'ü'.encode()
  assert documents[1].place == f'{source}:1'


def test_the_first_of_a_stream(source):
  documents = hub_documents(f'{source}&documents=2')
  assert read(documents) == TEXTS[:2]
  # The same documents as without, as far as they go.
  assert [d.name for d in documents] == ['json/train:0', 'json/train:1']


@pytest.mark.parametrize(
  ('value', 'kind'), [(7, 'int'), (['a', 'b'], 'list'), ({'a': 'b'}, 'dict')]
)
def test_a_stream_of_what_is_no_text(value, kind, tmp_path):
  (tmp_path / 'a.jsonl').write_text(json.dumps({'text': value}))
  with pytest.raises(
    ValueError, match=rf'^hf:.*row 0 is of type {kind}, allow'
  ):
    hub_documents(f'hf:json?data_files={tmp_path}/a.jsonl&documents=2')


def test_a_stream_that_breaks(tmp_path):
  good = json.dumps({'text': 'a' * 100})
  (tmp_path / 'a.jsonl').write_text(f'{good}\n' * 3)
  (tmp_path / 'b.jsonl').write_text('{"text": 1')
  with pytest.raises(ValueError, match=r'^hf:json.*allowed: a data set'):
    hub_documents(f'hf:json?data_files={tmp_path}/*.jsonl&documents=9')


def test_beside_files(source, tmp_path):
  (tmp_path / 'b.txt').write_text('b')
  found = sources.find_documents(f'{source},{tmp_path}/*.txt, {source}')
  assert found.num_documents == 4
  assert found.name(0) == 'b.txt'


@pytest.mark.parametrize(
  ('edit', 'reason'),
  [
    (('field=body', 'field=text'), "field: got 'text', allowed: body, id"),
    (('field=body', 'fields=body'), 'got fields, allowed: hf:NAME'),
    (('field=body', 'documents=0'), "documents: got '0'"),
    (('field=body', 'field=id'), 'is of type int64'),
    (('field=body', 'split=test'), 'allowed: a data set'),
    (('a.jsonl', 'none.jsonl'), 'allowed: a data set'),
    (('hf:json', 'hf:'), 'no name'),
  ],
)
def test_wrong_sources(source, edit, reason):
  with pytest.raises(ValueError, match=r'^hf:') as error:
    hub_documents(source.replace(*edit))
  assert reason in str(error.value)
