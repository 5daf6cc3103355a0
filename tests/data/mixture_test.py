"""Mixtures of corpora: numbers of rows, order of training, settings."""

import collections
import json

import numpy as np
import pytest

from abstractinator.data import pipeline
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.data.packing import PackedRows
from abstractinator.data.sources import find_documents, parse_mixture
from tests.data.pipeline_test import (
  data_config,
  row_numbers,
  take,
  train_iterator,
)


@pytest.fixture
def mixed():
  """Returns rows of 8 ids; each is a document of one repeated byte and EOS."""
  corpora = [
    Documents(MemoryDocument(f'{name}{i}', name * 7) for i in range(count))
    for name, count in ((b'a', 30), (b'b', 5), (b'c', 8))
  ]
  return PackedRows(
    corpora, sequence_length=8, max_documents=9, weights=[6, 1, 1]
  )


def test_rows_are_numbered_over_all_parts(mixed):
  assert len(mixed) == 43
  assert (len(mixed.documents), mixed.num_ids) == (43, 43 * 8)
  firsts = ''.join(chr(mixed[i]['ids'][0]) for i in range(43))
  assert firsts == 'a' * 30 + 'b' * 5 + 'c' * 8
  assert mixed[34]['row'] == 34
  with pytest.raises(IndexError):
    mixed[43]


def test_weights_hold_in_every_stretch(mixed):
  rows = row_numbers(take(train_iterator(mixed), 20))
  counts = collections.Counter(chr(mixed[row]['ids'][0]) for row in rows)
  assert counts == dict(a=60, b=10, c=10)
  # Each part is read through before it is read again.
  of_b = [row for row in rows if 30 <= row < 35]
  assert sorted(of_b[:5]) == sorted(of_b[5:]) == list(range(30, 35))
  half = collections.Counter(chr(mixed[r]['ids'][0]) for r in rows[:40])
  assert half['a'] == 30


def test_a_position_holds_for_any_number_of_processes(mixed):
  whole = row_numbers(take(train_iterator(mixed), 6))
  for count in (1, 2, 4):
    first, second = [], []
    for index in range(count):
      iterator = train_iterator(mixed, shard_index=index, shard_count=count)
      first.append(take(iterator, 2))
      state = json.loads(json.dumps(iterator.get_state()))
      assert state == {'next_row': 8}
      # One process continues, with batches of another size.
      other = train_iterator(mixed, batch_size=8)
      other.set_state(state)
      second.append(row_numbers(take(other, 2)))
      assert other.get_state() == {'next_row': 24}
    read = np.stack([[b.row_B for b in batches] for batches in first], axis=-1)
    assert read.reshape(-1).tolist() == whole[:8]
    assert all(rows == whole[8:24] for rows in second)


def test_a_position_within_a_batch_is_refused(mixed):
  with pytest.raises(ValueError, match=r'data\.batch_size: got 4'):
    train_iterator(mixed).set_state({'next_row': 6})


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', [(1.0, '')]),
    ('a/*.txt,b', [(1.0, 'a/*.txt,b')]),
    ('hf:json?field=x', [(1.0, 'hf:json?field=x')]),
    ('0.7:a,b; 3:hf:c', [(0.7, 'a,b'), (3.0, 'hf:c')]),
    ('2:a', [(2.0, 'a')]),
  ],
)
def test_parse_mixture(text, expected):
  assert parse_mixture(text) == expected


@pytest.mark.parametrize(
  'text', ['a;b', '0.5:a;b', '0:a;1:b', '1.2.3:a', '1:a;']
)
def test_a_mixture_without_weights_is_refused(text):
  with pytest.raises(ValueError, match=r'data\.train: got .*WEIGHT:GLOBS'):
    parse_mixture(text)


def test_separators_in_a_path_are_written_as_wildcards(tmp_path):
  folder = tmp_path / 'a,b;c'
  folder.mkdir()
  (folder / '0.txt').write_text('text')

  def documents(path):
    ((_, globs),) = parse_mixture(f'{path}/*')
    return find_documents(globs)

  assert len(documents(tmp_path / 'a?b?c')) == 1
  with pytest.raises(ValueError, match=r"'\?' for a semicolon in a path"):
    documents(folder)
  with pytest.raises(ValueError, match=r"'\?' for a comma in a path"):
    documents(tmp_path / 'a,b?c')


def test_a_mixture_from_a_config(tmp_path):
  for name, count in (('a', 40), ('b', 20)):
    (tmp_path / name).mkdir()
    for i in range(count):
      (tmp_path / name / f'{i}.txt').write_text(name * 20 + str(i))
  config = data_config(
    train=f'3:{tmp_path}/a/*;1:{tmp_path}/b/*', validation_fraction=0.3
  )
  train, validation = pipeline.open_data(config, max_documents=9)
  assert train.weights == (0.75, 0.25)
  assert len(train.documents) + len(validation.documents) == 60
  held_out = {document.read(0, 1) for document in validation.documents}
  assert held_out == {b'a', b'b'}
  found = train.identity()
  assert json.loads(json.dumps(found)) == found
  assert [p['num_documents'] for p in found['parts']] == [
    len(corpus) for corpus in train.corpora
  ]
