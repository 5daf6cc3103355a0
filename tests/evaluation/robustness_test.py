from types import SimpleNamespace

import jax
import numpy as np
import pytest

from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.evaluation.coded_rows import CodedLevel
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.robustness import (
  disturb,
  disturbed_passages,
  drift_figures,
  edit_figures,
)
from abstractinator.runs.state import variables_of
from tests.helpers import tiny_run


def documents(texts):
  return Documents([MemoryDocument(str(i), x) for i, x in enumerate(texts)])


@pytest.fixture(scope='module')
def evaluator():
  config = tiny_run.pyramid_config()
  variables = variables_of(tiny_run.random_state(config, 0))
  return Evaluator(config, variables, batch_size=1, devices=jax.devices()[:1])


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('drop', b''),
    ('repeat', 'BByyee,,  éé'.encode() + b'\xff\xff'),
    ('random_case', 'bYE, É'.encode() + b'\xff'),
    ('upper_case', 'BYE, É'.encode() + b'\xff'),
    ('ant_speak', 'B Y E, É'.encode() + b'\xff'),
  ],
)
def test_what_is_hit_everywhere(kind, expected):
  text = 'Bye, é'.encode() + b'\xff'
  rng = np.random.default_rng(0)
  assert disturb(text, kind, 1.0, rng) == expected
  assert disturb(text, kind, 0.0, rng) == text


def test_a_tenth_is_hit():
  text = b'word ' * 4000
  rng = np.random.default_rng(0)
  dropped = len(disturb(text, 'drop', 0.1, rng))
  assert 0.88 < dropped / len(text) < 0.92
  upper = disturb(text, 'upper_case', 0.1, rng).count(b'WORD')
  assert 340 < upper < 460
  # The same each time, and not the same for two documents.
  passages = disturbed_passages(documents([text, text]), 'drop')
  first, other = (p.ids.tolist() for p in passages)
  assert first != other
  assert [first, other] == [p.ids.tolist() for p in passages]


class FourByFour:
  """An evaluator of two levels that both cut after every fourth id.

  The code of a segment is the sum of its ids modulo 256, so that an edit
  changes the segments that hold it and no others.
  """

  config = SimpleNamespace(data=SimpleNamespace(sequence_length=33))

  def levels(self, passages):
    for passage in passages:
      ids_S, found, slot_S = passage.ids, [], np.arange(len(passage.ids))
      for _ in range(2):
        index_S, slot_S = np.arange(len(ids_S)) // 4, slot_S // 4
        ids_S = np.bincount(index_S, weights=ids_S).astype(int) % 256
        found.append(level_of(slot_S, codes_U=ids_S))
      yield SimpleNamespace(windows=[()]), found


def level_of(slot_S, codes_U=None):
  """A level of one row, of which only slots of bytes and codes matter."""
  codes_BU = None if codes_U is None else codes_U[None]
  return CodedLevel(
    None, None, None, None, codes_BU, None, slot_S[None], num_queries=1
  )


def test_an_edit_reaches_to_the_end_of_its_segment():
  texts = [bytes(range(n)) for n in (40, 32, 32, 9, 1)]
  found = edit_figures(FourByFour(), documents(texts))
  # Rows of 33 ids hold 32 bytes and EOS.
  rng = np.random.default_rng(0)
  reaches = [[], []]
  for n in (32, 32, 32, 9, 1):
    place, _ = int(rng.integers(n)), rng.integers(1, 256)
    for i, size in enumerate((4, 16)):
      end = min((place // size + 1) * size, n + 1)
      reaches[i].append(end - place)
  for i in range(2):
    assert found[f'level{i}/edit_changed_segments'] == 1
    for p in (50, 95):
      name = f'level{i}/edit_reach_bytes_p{p}'
      assert found[name] == pytest.approx(np.percentile(reaches[i], p))
  with pytest.raises(ValueError, match='has no bytes'):
    edit_figures(FourByFour(), documents([]))


def test_drift_compares_segments_of_both_ends(evaluator, monkeypatch):
  texts = documents([b'bits of', b'some text'])
  found = drift_figures(evaluator, texts, period=8, length=32)
  assert set(found) == {'level0/drift_ratio', 'level1/drift_ratio'}
  read = []

  def levels_of_long(ids_N):
    read.append(ids_N.tolist())
    # Segments of two bytes at first and of eight after that.
    return [level_of(np.repeat(np.arange(7), [2] * 4 + [8] * 3))] * 2

  monkeypatch.setattr(evaluator, 'levels_of_long', levels_of_long)
  found = drift_figures(evaluator, texts, period=8, length=32)
  assert found == {'level0/drift_ratio': 4, 'level1/drift_ratio': 4}
  assert read == [list(b'some tex' * 4)]
  with pytest.raises(ValueError, match='no document of 9999 bytes'):
    drift_figures(evaluator, texts, period=9999, length=32)
