"""Data sets of Hugging Face, from local files through its own builders."""

import json

import datasets
import pytest

from abstractinator.data import hub, sources
from abstractinator.data.documents import Documents, Skipped
from tests.helpers.document_files import contents, names

TEXTS = ['one', 'zwü', 'three']


def hub_documents(source, skipped=None):
  return hub.hub_documents(source, skipped or Skipped())


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


@pytest.fixture
def source(tmp_path):
  lines = [json.dumps({'body': text, 'id': i}) for i, text in enumerate(TEXTS)]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  return f'hf:json?data_files={tmp_path}/a.jsonl&field=body'


def test_all_rows_of_a_data_set_are_documents(source):
  found = hub_documents(source)
  documents = Documents(found)
  assert contents(documents) == [text.encode() for text in TEXTS]
  assert names(documents) == [f'json/train:{i}' for i in range(3)]
  assert documents[1].read(2, 4) == 'ü'.encode()
  assert found[1].place == f'{source}:1'


def test_a_stream_has_the_first_rows_under_the_same_names(source):
  documents = Documents(hub_documents(f'{source}&documents=2'))
  assert contents(documents) == [text.encode() for text in TEXTS[:2]]
  assert names(documents) == ['json/train:0', 'json/train:1']


@pytest.mark.parametrize(
  ('value', 'reason'),
  [
    (7, 'is of type int64'),
    (['a', 'b'], 'is of type list'),
    ({'a': 'b'}, 'is of type struct'),
  ],
)
def test_a_stream_without_texts_is_refused(value, reason, tmp_path):
  (tmp_path / 'a.jsonl').write_text(json.dumps({'body': value}))
  source = f'hf:json?data_files={tmp_path}/a.jsonl&documents=2&field=body'
  with pytest.raises(ValueError, match=rf"^hf:.*: 'body' {reason}.*, allow"):
    hub_documents(source)


@pytest.mark.parametrize('options', ['', '&documents=9'])
def test_empty_and_null_texts_are_passed_over(options, tmp_path):
  lines = [json.dumps({'text': text}) for text in ('a', '', None, 'b', '')]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  source, skipped = f'hf:json?data_files={tmp_path}/a.jsonl{options}', Skipped()
  documents = Documents(hub_documents(source, skipped))
  assert names(documents) == ['json/train:0', 'json/train:3']
  assert contents(documents) == [b'a', b'b']
  assert str(skipped) == (
    f'empty: 2 (the first is {source}:1), null: 1 (the first is {source}:2)'
  )


def test_a_stream_that_breaks_is_reported(tmp_path):
  good = json.dumps({'text': 'a' * 100})
  (tmp_path / 'a.jsonl').write_text(f'{good}\n' * 3)
  (tmp_path / 'b.jsonl').write_text('{"text": 1')
  with pytest.raises(ValueError, match=r'^hf:json.*allowed: a data set'):
    hub_documents(f'hf:json?data_files={tmp_path}/*.jsonl&documents=9')


def test_data_sets_come_after_files_and_once(source, tmp_path):
  (tmp_path / 'b.txt').write_text('b')
  found = sources.find_documents(f'{source},{tmp_path}/*.txt, {source}')
  assert len(found) == 4
  assert found[0].name == 'b.txt'


@pytest.mark.parametrize(
  ('edit', 'reason'),
  [
    (('field=body', 'field=text'), "field: got 'text', allowed: body, id"),
    (('field=body', 'documents=2'), "field: got 'text', allowed: body, id"),
    (('field=body', 'fields=body'), 'got fields, allowed: hf:NAME'),
    (('field=body', 'documents=0'), "documents: got '0'"),
    (('field=body', 'field=id'), "'id' is of type int64"),
    (('field=body', 'split=test'), 'allowed: a data set'),
    (('a.jsonl', 'none.jsonl'), 'allowed: a data set'),
    (('hf:json', 'hf:'), 'no name'),
  ],
)
def test_a_wrong_source_says_what_is_allowed(source, edit, reason):
  with pytest.raises(ValueError, match=r'^hf:') as error:
    hub_documents(source.replace(*edit))
  assert reason in str(error.value)
