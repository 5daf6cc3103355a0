"""Batches to train on and to validate on."""

import json

import jax
import numpy as np
import pytest

from abstractinator.config import DataConfig
from abstractinator.data import pipeline
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.data.packing import PackedRows
from abstractinator.types import PAD_ID, Batch

SEQUENCE_LENGTH = 8


def make_rows(count):
  """Returns rows that differ: row i is SEQUENCE_LENGTH - 1 bytes i and EOS."""
  documents = [
    MemoryDocument(f'd{i}', bytes([i]) * (SEQUENCE_LENGTH - 1))
    for i in range(count)
  ]
  return PackedRows(
    [Documents(documents)], sequence_length=SEQUENCE_LENGTH, max_documents=9
  )


def order_of(**changes):
  return pipeline.BatchOrder(**{'seed': 0, 'batch_size': 4} | changes)


def train_iterator(rows, read_threads=2, **changes):
  return pipeline.TrainIterator(
    rows, order_of(**changes), read_threads=read_threads, prefetch_batches=3
  )


def validation_batches(rows, max_batches=None, **changes):
  return pipeline.validation_batches(
    rows, order_of(**changes), max_batches=max_batches
  )


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def row_numbers(batches):
  return np.concatenate([batch.row_B for batch in batches]).tolist()


def assert_equal(one, two):
  assert len(one) == len(two)
  jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_is_batch_of(batch, rows, size):
  assert isinstance(batch, Batch)
  assert batch.ids_BS.shape == batch.document_BS.shape == (size, 8)
  for field in (batch.ids_BS, batch.document_BS, batch.row_B):
    assert isinstance(field, np.ndarray)
    assert field.dtype == np.int32
  for i, number in enumerate(batch.row_B):
    np.testing.assert_array_equal(batch.ids_BS[i], rows[number]['ids'])
    np.testing.assert_array_equal(
      batch.document_BS[i], rows[number]['document']
    )


@pytest.mark.parametrize('read_threads', [0, 2])
def test_training_reads_each_row_once_per_epoch(read_threads):
  rows = make_rows(10)
  batches = take(train_iterator(rows, read_threads=read_threads), 10)
  for batch in batches:
    assert_is_batch_of(batch, rows, 4)
  numbers = row_numbers(batches)
  epochs = [numbers[i : i + 10] for i in range(0, 40, 10)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(10))
  # Ten rows in the same order twice by chance: 1 in 3.6 million.
  assert len({*map(tuple, epochs), tuple(range(10))}) == 5


def test_seed_determines_the_order():
  rows = make_rows(20)
  one = row_numbers(take(train_iterator(rows), 5))
  assert one == row_numbers(take(train_iterator(rows), 5))
  assert one == row_numbers(take(train_iterator(rows, read_threads=0), 5))
  assert one != row_numbers(take(train_iterator(rows, seed=1), 5))


@pytest.mark.parametrize('position', [0, 1, 7])
def test_resume_is_exact(position):
  rows = make_rows(10)
  iterator = train_iterator(rows)
  take(iterator, position)
  state = json.loads(json.dumps(iterator.get_state()))
  assert state == {'next_row': 4 * position}
  expected = take(iterator, 6)
  fresh = train_iterator(rows)
  fresh.set_state(state)
  assert_equal(take(fresh, 6), expected)
  # Going back works too, while the queue holds batches read ahead.
  iterator.set_state(state)
  assert_equal(take(iterator, 6), expected)
  assert iterator.get_state() == {'next_row': 4 * (position + 6)}


@pytest.mark.parametrize('shard_count', [2, 4])
def test_shards_unite_to_the_global_batch(shard_count):
  rows = make_rows(10)
  sharding = [
    {'shard_index': i, 'shard_count': shard_count} for i in range(shard_count)
  ]
  for make in (train_iterator, validation_batches):
    shards = [make(rows, **shard) for shard in sharding]
    parts = [take(shard, 3) for shard in shards]
    for batch, *local in zip(take(make(rows), 3), *parts, strict=True):
      size = 4 // shard_count
      assert [len(part.row_B) for part in local] == [size] * shard_count
      united = jax.tree.map(
        lambda *xs: np.stack(xs, axis=1).reshape(4, *xs[0].shape[1:]), *local
      )
      assert_equal([united], [batch])


def test_position_moves_between_shard_counts():
  rows = make_rows(10)
  whole = train_iterator(rows)
  half = train_iterator(rows, shard_index=1, shard_count=2)
  take(half, 3)
  whole.set_state(half.get_state())
  assert row_numbers(take(whole, 1))[1::2] == row_numbers(take(half, 1))


def test_data_set_may_be_smaller_than_a_batch():
  rows = make_rows(3)
  batches = take(train_iterator(rows, batch_size=8), 3)
  assert np.bincount(row_numbers(batches)).tolist() == [8, 8, 8]
  assert [batch.ids_BS.shape for batch in batches] == [(8, 8)] * 3


@pytest.mark.parametrize('count', [1, 3, 4, 10, 12])
def test_validation_reads_each_row_once_and_pads(count):
  rows = make_rows(count)
  batches = list(validation_batches(rows))
  assert len(batches) == -(-count // 4)
  numbers = row_numbers(batches)
  assert sorted(numbers[:count]) == list(range(count))
  assert numbers[count:] == [-1] * (-count % 4)
  for batch in batches:
    assert batch.ids_BS.shape == (4, 8)
    real = jax.tree.map(lambda x, is_real=batch.row_B >= 0: x[is_real], batch)
    assert_is_batch_of(real, rows, len(real.row_B))
    assert (batch.ids_BS[batch.row_B < 0] == PAD_ID).all()
    assert (batch.document_BS[batch.row_B < 0] == -1).all()


def test_validation_order_is_shuffled_and_fixed():
  rows = make_rows(40)
  order = row_numbers(validation_batches(rows))
  assert order == row_numbers(validation_batches(rows))
  assert order != sorted(order)
  assert order != row_numbers(validation_batches(rows, seed=1))
  first = validation_batches(rows, max_batches=3)
  assert row_numbers(first) == order[:12]


def test_every_shard_has_as_many_validation_batches():
  # The last batch has one row: shard 1 has nothing but padding in it.
  rows = make_rows(5)
  shards = [
    list(validation_batches(rows, shard_index=i, shard_count=2))
    for i in range(2)
  ]
  assert [len(shard) for shard in shards] == [2, 2]
  assert shards[0][1].row_B[0] >= 0
  assert shards[1][1].row_B.tolist() == [-1, -1]


def data_config(**changes):
  settings = {
    'train': '',
    'validation': '',
    'validation_fraction': 0.05,
    'sequence_length': 16,
    'batch_size': 4,
    'vocab_size': 256,
    'packing': True,
    'read_threads': 0,
    'prefetch_batches': 1,
  }
  return DataConfig(**settings | changes)


def test_open_data_splits_the_default_corpus():
  train, validation = pipeline.open_data(data_config(), max_documents=7)
  assert len(train.documents) > 10 * len(validation.documents) > 0
  assert train.num_ids > 5e6
  assert train.sequence_length == validation.sequence_length == 16


def test_open_data_reads_globs(tmp_path):
  for i in range(30):
    (tmp_path / f'{i}.txt').write_bytes(b'abc')
  (tmp_path / 'held').write_bytes(b'held out')
  config = data_config(train=f'{tmp_path}/*.txt', validation=f'{tmp_path}/held')
  train, validation = pipeline.open_data(config, max_documents=7)
  assert (len(train.documents), len(validation.documents)) == (30, 1)
  assert validation.identity() == {
    'num_documents': 1,
    'num_bytes': 8,
    'num_rows': 1,
    'sha256': validation.documents.sha256(),
  }
  config = data_config(train=f'{tmp_path}/*.txt', validation_fraction=0.3)
  train, validation = pipeline.open_data(config, max_documents=7)
  # `printf 1.txt | sha1sum` and nine others are below 0.3, as fractions.
  assert (len(train.documents), len(validation.documents)) == (20, 10)


def test_open_data_refuses_to_train_on_what_is_held_out(tmp_path):
  for i in range(5):
    (tmp_path / f'{i}.txt').write_text('abc')
  both = f'{tmp_path}/[34].txt'
  config = data_config(
    train=f'2:{tmp_path}/[012].txt;1:{both}',
    validation=f'{tmp_path}/../{tmp_path.name}/4.*',
  )
  with pytest.raises(ValueError, match=r'validation: 1 of its 1') as error:
    pipeline.open_data(config, max_documents=7)
  assert f'{tmp_path}/4.txt' in str(error.value)


def test_open_data_refuses_a_mixture_that_trains_on_what_it_holds_out(tmp_path):
  (tmp_path / 'a').mkdir()
  for i in range(40):
    (tmp_path / 'a' / f'{i}.txt').write_text('abc')
  # The same document is named a/0.txt in one part and 0.txt in the other.
  globs = f'{tmp_path}/**/*.txt', f'{tmp_path}/a/*.txt'
  config = data_config(
    train='1:{};1:{}'.format(*globs), validation_fraction=0.3
  )
  with pytest.raises(ValueError, match=r'data\.train: \d+ documents held out'):
    pipeline.open_data(config, max_documents=7)
  # With one root it has one name, and is on one side in both parts.
  config = data_config(
    train='1:{1};1:{1}'.format(*globs), validation_fraction=0.3
  )
  pipeline.open_data(config, max_documents=7)


def test_open_data_without_packing_begins_rows_with_documents(tmp_path):
  for i, length in enumerate((5, 20, 3, 40)):
    (tmp_path / f'{i}.txt').write_text('x' * length)
  config = data_config(
    train=f'{tmp_path}/[12].txt',
    validation=f'{tmp_path}/[03].txt',
    packing=False,
  )
  train, validation = pipeline.open_data(config, max_documents=7)
  # Documents of 21 and 4 ids, and of 6 and 41, in rows of 16.
  assert (len(train), len(validation)) == (3, 4)
  for row in (*train, *validation):
    assert row['document'][0] == row['document'].max() == 0


def test_open_data_of_other_ids(tmp_path):
  np.save(tmp_path / 'a.npy', np.arange(600).reshape(30, 20))
  config = data_config(
    train=f'{tmp_path}/a.npy', vocab_size=600, validation_fraction=0.5
  )
  train, _ = pipeline.open_data(config, max_documents=7)
  row = train[0]
  first = int(train.documents[0].read(0, 1)[0])
  assert row['ids'].tolist() == list(range(first, first + 16))
  # The specials come after the ids.
  assert train[1]['ids'][4] == 601
  assert train.pad_id == 602
