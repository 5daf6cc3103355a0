import dataclasses
import json

import jax
import numpy as np
import pytest

import abstractinator
from abstractinator.cli import evaluate as evaluate_command
from abstractinator.cli.main import main
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.evaluation.evaluate import evaluate
from abstractinator.evaluation.evaluator import open_run
from abstractinator.evaluation.robustness import KINDS
from abstractinator.evaluation.windows import DocumentPassages
from abstractinator.objective.by_level import ByLevel
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
  'total_over_flat',
  'code_efficiency',
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
  expected = evaluate(one, passages).flattened()
  assert set(expected) == FIGURES
  assert expected == evaluate(one, passages).flattened()
  many = run_evaluator(workdir, batch_size=32, devices=8)
  got = evaluate(many, passages).flattened()
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


@pytest.mark.nightly
def test_command_and_its_levels(pyramid, tmp_path, capsys):
  trained = abstractinator.load(pyramid)
  # Words, and bytes of which the model predicts some right.
  content = documents()[0].read(0, 90)
  content += trained.reconstruct(content).text
  content += trained.reconstruct(content[90:]).text
  text = tmp_path / 'a.txt'
  text.write_bytes(content)
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
  # The rows of one document are those in which a trained pyramid encodes it.
  rebuilt = trained.reconstruct(content)
  assert 0 < rebuilt.byte_accuracy < rebuilt.teacher_forced_byte_accuracy < 1
  assert figures['teacher_forced_byte_accuracy'] == pytest.approx(
    rebuilt.teacher_forced_byte_accuracy
  )
  assert figures['free_running_byte_accuracy'] == rebuilt.byte_accuracy


def test_the_text_begins_with_the_headline_and_has_units():
  level = {'expander_bits_per_byte': 1.5, 'bytes_per_segment': 4.25}
  whole = {
    'documents': 2,
    'bytes': 12345,
    'code_bits_per_byte': 0.5,
    'code_model': 'unigram',
    'total_bits_per_byte': 2.0,
    'free_running_byte_accuracy': 0.125,
  }
  more = {'noise/drop/total_bits_per_byte': 3.0, 'edit_reach': 1.0}
  text = evaluate_command.grouped(ByLevel((level, {}), whole), more)
  assert [line.split() for line in text.splitlines()] == [
    ['whole'],
    ['total_bits_per_byte', '2.000', 'bits/byte'],
    ['code_bits_per_byte', '0.500', 'bits/byte'],
    ['code_model', 'unigram'],
    ['free_running_byte_accuracy', '12.50%'],
    ['documents', '2'],
    ['bytes', '12,345'],
    ['level', '0'],
    ['expander_bits_per_byte', '1.500', 'bits/byte'],
    ['bytes_per_segment', '4.25', 'bytes/segment'],
    ['level', '1'],
    ['noise/drop'],
    ['total_bits_per_byte', '3.000', 'bits/byte'],
    ['other'],
    ['edit_reach', '1.0000'],
  ]


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
  args = ['evaluate', str(tmp_path), f'--data={text}']
  assert main([*args, '--generated', '--json']) == 0
  assert set(json.loads(capsys.readouterr().out)) == {
    'documents',
    'bytes',
    'entropy_model_bits_per_byte',
    'entropy_model_byte_accuracy',
    'generated/entropy_model_bits_per_byte',
    'generated/held_out_bits_per_byte',
    'generated/over_held_out',
  }
  text.write_bytes(b'short')
  for flag, message in (
    ('--generated', 'data: got no document of 24 bytes, allowed: at least one'),
    ('--drift', '--drift: got a run of an entropy model, allowed: a run with'),
  ):
    assert main([*args, flag]) == 2
    said = capsys.readouterr().err
    assert message in said
    # Nothing long was done before.
    assert 'compiling' not in said
