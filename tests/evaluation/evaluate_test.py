import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from abstractinator.cli.main import main
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.evaluation.coded_rows import other_memory
from abstractinator.evaluation.evaluate import evaluate
from abstractinator.evaluation.evaluator import open_run
from abstractinator.evaluation.level_statistics import (
  BoundaryAgreement,
  LevelStatistics,
  word_starts,
)
from abstractinator.evaluation.noise import KINDS
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.evaluation.windows import (
  DocumentPassages,
  Passage,
  batches_of,
  rows_of,
  windows_of,
)
from abstractinator.types import EOS_ID, bytes_to_ids
from tests.helpers import tiny_run

LEVEL_FIGURES = {
  'entropy_model_bits_per_byte',
  'expander_bits_per_byte',
  'end_bits_per_byte',
  'expander_bits_per_byte_true_codes',
  'expander_bits_per_byte_zeroed_codes',
  'expander_bits_per_byte_shuffled_codes',
  'ids_per_segment',
  'bytes_per_segment',
  'segment_bits_p50',
  'segment_bits_p95',
  'segment_bits_p99',
  'segments_over_capacity_fraction',
  'code_capacity_bits',
  'live_code_fraction',
  'codebook_perplexity',
  'overflow_fraction',
  'word_start_precision',
  'word_start_recall',
  'word_start_f1',
}
FIGURES = LEVEL_FIGURES | {
  'documents',
  'bytes',
  'code_bits_per_byte',
  'code_model',
  'total_bits_per_byte',
  'teacher_forced_byte_accuracy',
  'free_running_byte_accuracy',
  'exact_document_fraction',
}


def documents():
  rng = np.random.default_rng(5)
  words = [b'a', b'bit', b'of', b'text', b'\xc3\xa9t\xc3\xa9', b'123', b'--']
  texts = [b' '.join(rng.choice(words, n)) for n in (40, 1, 13, 3, 25, 2)]
  return Documents([MemoryDocument(str(i), x) for i, x in enumerate(texts)])


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  tiny_run.save(path, tiny_run.config(ends='entropy'))
  return str(path)


@pytest.fixture(scope='module')
def pyramid(tmp_path_factory):
  path = tmp_path_factory.mktemp('pyramid')
  tiny_run.save(path, tiny_run.pyramid_config())
  return str(path)


@pytest.mark.parametrize('stride', [1, 3, 8])
def test_every_id_counts_once(stride):
  size = 8
  passages = [
    Passage(np.arange(100 * i, 100 * i + n), counted_from=start)
    for i, (n, start) in enumerate(
      [(1, 0), (8, 0), (9, 0), (30, 0), (2, 1), (2, 0), (30, 2), (30, 17)]
    )
  ]
  rows = rows_of(windows_of(passages, size, stride), size, max_documents=3)
  counted, sizes = [], set()
  for batch in batches_of(rows, size, batch_size=4):
    ids_BS = batch.batch.ids_BS
    assert ids_BS.shape == (4, size)
    counted += ids_BS[batch.is_counted_BS].tolist()
    for row, windows in enumerate(batch.windows):
      sizes.add(len(windows))
      assert batch.batch.row_B[row] >= 0
      document_S = batch.batch.document_BS[row]
      for number, window in enumerate(windows):
        np.testing.assert_array_equal(
          ids_BS[row][document_S == number], window.ids
        )
        # The context is what stands before in the passage, and all of the
        # stride's complement if there is so much.
        ids = passages[window.passage].ids
        first = window.ids[window.num_context] - ids[0]
        room = size - stride
        is_last = window.ids[-1] == ids[-1]
        if passages[window.passage].counted_from and is_last:
          room = size - (ids[-1] + 1 - ids[0] - first)
        assert window.num_context == min(first, room)
    for row in range(len(batch.windows), 4):
      assert batch.batch.row_B[row] == -1
      assert (batch.batch.document_BS[row] == -1).all()
  assert counted == [
    i for p in passages for i in p.ids[p.counted_from :].tolist()
  ]
  assert max(sizes) <= 3
  assert stride < 8 or sizes == {1, 2}


def run_evaluator(workdir, batch_size, devices):
  evaluator = open_run(workdir, batch_size=batch_size)
  # `open_run` takes all devices.
  return type(evaluator)(
    evaluator.config,
    jax.device_get(evaluator.variables),
    batch_size=batch_size,
    stride=evaluator.stride,
    devices=jax.devices()[:devices],
  )


def test_batches_and_devices_change_nothing(workdir):
  """Nor does a second time; and these are all of the figures."""
  passages = DocumentPassages(documents())
  one = run_evaluator(workdir, batch_size=1, devices=1)
  expected = evaluate(one, passages)
  assert set(expected) == FIGURES
  assert expected == evaluate(one, passages)
  got = evaluate(run_evaluator(workdir, batch_size=32, devices=8), passages)
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    assert got[name] == pytest.approx(value, abs=1e-4), name
  assert expected['bytes'] == documents().lengths.sum()
  assert expected['documents'] == 6
  # The entropy model says the ends; slots never run short then.
  assert expected['end_bits_per_byte'] == 0
  assert expected['overflow_fraction'] == 0
  assert expected['code_model'] == 'unigram'
  assert expected['total_bits_per_byte'] == pytest.approx(
    expected['code_bits_per_byte'] + expected['expander_bits_per_byte']
  )


def test_command_and_its_levels(pyramid, tmp_path, capsys):
  text = tmp_path / 'a.txt'
  text.write_bytes(documents().read(0, 0, 90))
  args = ['evaluate', pyramid, f'--data={text}', '--stride=32']
  assert main([*args, '--json', '--noise']) == 0
  figures = json.loads(capsys.readouterr().out)
  noisy = {k: figures.pop(k) for k in list(figures) if 'noise/' in k}
  names = {
    'level0/entropy_model_bits_per_byte',
    'total_bits_per_byte',
    'teacher_forced_byte_accuracy',
    'free_running_byte_accuracy',
  }
  assert set(noisy) == {f'noise/{k}/{name}' for k in KINDS for name in names}
  assert len({noisy[f'noise/{k}/total_bits_per_byte'] for k in KINDS}) == 5
  edits = {k: figures.pop(k) for k in list(figures) if '/edit_' in k}
  assert set(edits) == {
    f'level{i}/edit_{name}'
    for i in range(2)
    for name in ('changed_segments', 'reach_bytes_p50', 'reach_bytes_p95')
  }
  of_levels = {f'level{i}/{name}' for i in range(2) for name in LEVEL_FIGURES}
  assert set(figures) == of_levels | (FIGURES - LEVEL_FIGURES)
  assert figures['code_model'] == 'top_lm'
  assert figures['total_bits_per_byte'] == pytest.approx(
    figures['code_bits_per_byte']
    + sum(
      figures[f'level{i}/{part}_bits_per_byte']
      for i in range(2)
      for part in ('expander', 'end')
    )
  )
  # With a stride of a row both ways of counting see the same.
  for i in range(2):
    assert figures[f'level{i}/expander_bits_per_byte_true_codes'] == (
      pytest.approx(figures[f'level{i}/expander_bits_per_byte'])
    )
  assert 0 <= figures['free_running_byte_accuracy'] <= 1


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (
      ['--stride=33'],
      'stride: got 33, allowed: 1 to data.sequence_length (32)',
    ),
    (['--batch_size=0'], 'batch_size: got 0, allowed: at least 1'),
    (['--data=nowhere/*'], 'matches no file'),
    (['--max_documents=0'], '--max_documents: got 0, allowed: at least 1'),
  ],
)
def test_bad_input(workdir, args, message, capsys):
  assert main(['evaluate', workdir, *args]) == 2
  assert message in capsys.readouterr().err


def test_an_entropy_model_has_its_own_figures(tmp_path, capsys):
  config = dataclasses.replace(tiny_run.config(), objective='entropy_model')
  tiny_run.save(tmp_path, config)
  text = tmp_path / 'a.txt'
  text.write_bytes(b'some text' * 9)
  assert main(['evaluate', str(tmp_path), f'--data={text}', '--json']) == 0
  assert set(json.loads(capsys.readouterr().out)) == {
    'documents',
    'bytes',
    'entropy_model_bits_per_byte',
    'entropy_model_byte_accuracy',
  }


@pytest.mark.parametrize('sizes', [(5,), (300, 300)])
def test_unigram_bits_are_those_of_a_model_that_learns_as_it_goes(sizes):
  rng = np.random.default_rng(0)
  num_codes = math.prod(sizes)
  codes = np.minimum(rng.geometric(0.3, 200) * num_codes // 20, num_codes - 1)
  counts = CodeCounts(sizes)
  counts.add(codes[:50])
  counts.add(codes[50:])
  digits = [codes] if len(sizes) == 1 else [codes % sizes[0], codes // sizes[0]]
  expected = 0.0
  for digit, size in zip(digits, sizes, strict=True):
    seen = np.full(size, 0.5)
    for value in digit:
      expected -= np.log2(seen[value] / seen.sum())
      seen[value] += 1
  assert counts.bits() == pytest.approx(expected)
  used = [np.unique(digit, return_counts=True)[1] / 200 for digit in digits]
  bits = sum(-(p * np.log2(p)).sum() for p in used)
  assert counts.perplexity() == pytest.approx(2**bits)
  assert counts.live_fraction() == pytest.approx(
    np.mean([len(p) / size for p, size in zip(used, sizes, strict=True)])
  )


def test_segment_statistics():
  (config,) = tiny_run.config().model.levels
  level = LevelStatistics(config)
  index_BS = np.array([[0, 0, 1, 2, 2, 2, -1], [0, 1, 1, 1, -1, -1, -1]])
  bits_BS = np.array([[1, 2, 4, 1, 1, 1, 9], [7, 2, 2, 3, 9, 9, 9]])
  is_short_BS = np.zeros_like(index_BS, bool)
  is_short_BS[1, 2:] = True
  level.add(index_BS, bits_BS, is_short_BS, np.array([3, 3, 5, 3, 3]))
  got = level.summary(num_bytes=20)
  # Segments of 3, 4, 3, 7 and 7 bits; codes say 6.
  assert got['code_capacity_bits'] == 6
  assert got['segment_bits_p50'] == 4
  assert got['segments_over_capacity_fraction'] == pytest.approx(2 / 5)
  assert got['ids_per_segment'] == 2
  assert got['bytes_per_segment'] == 4
  assert got['overflow_fraction'] == pytest.approx(2 / 10)
  assert got['live_code_fraction'] == 2 / 64


def test_boundaries_and_words():
  ids = bytes_to_ids('Ab, été_1  x'.encode())
  is_first = np.arange(len(ids)) == 0
  starts = word_starts(ids, is_first)
  assert [int(i) for i in np.flatnonzero(starts)] == [0, 4, 13]
  assert ids[-1] == EOS_ID
  # Packed: the second document begins with a word although a letter is before.
  is_first[1] = True
  assert word_starts(ids, is_first)[1]
  agreement = BoundaryAgreement()
  got = np.isin(np.arange(len(ids)), [0, 2, 4])
  agreement.add(got, starts, ~is_first)
  summary = agreement.summary()
  assert summary['word_start_precision'] == 1 / 2
  assert summary['word_start_recall'] == 1 / 2
  assert summary['word_start_f1'] == pytest.approx(1 / 2)


def test_shuffled_codes_are_those_of_other_segments():
  memory = np.arange(12.0).reshape(1, 12, 1)
  is_code = np.arange(12)[None] < 10
  got = other_memory(memory, is_code, num_queries=2, kind='shuffled')
  # Five segments, moved on by two; empty slots stay.
  assert got[0, :, 0].tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 10, 11]
  assert not other_memory(memory, is_code, 2, 'zeroed').any()
