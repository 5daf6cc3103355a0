import jax
import numpy as np
import pytest

from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.evaluation.drift import drift_figures
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.noise import (
  DisturbedPassages,
  disturb,
  edit_figures,
)
from abstractinator.runs.state import variables_of
from tests.helpers import tiny_run


def documents():
  rng = np.random.default_rng(5)
  words = [b'a', b'bit', b'of', b'text', b'\xc3\xa9t\xc3\xa9', b'123', b'--']
  texts = [b' '.join(rng.choice(words, n)) for n in (40, 1, 13, 3, 25, 2)]
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
  passages = DisturbedPassages(
    Documents([MemoryDocument(str(i), text) for i in range(2)]), 'drop'
  )
  first, other = (p.ids.tolist() for p in passages)
  assert first != other
  assert [first, other] == [p.ids.tolist() for p in passages]


def test_an_edit_changes_its_own_segment_and_no_earlier_one(evaluator):
  found = edit_figures(evaluator, documents())
  for level in range(2):
    assert found[f'level{level}/edit_changed_segments'] >= 0.5
    # No further than the row.
    assert 0 < found[f'level{level}/edit_reach_bytes_p95'] <= 32
    p50 = found[f'level{level}/edit_reach_bytes_p50']
    assert p50 <= found[f'level{level}/edit_reach_bytes_p95']


def test_drift_counts_segments_of_both_ends(evaluator, monkeypatch):
  found = drift_figures(evaluator, documents(), period=8, length=32)
  assert set(found) == {'level0/drift_ratio', 'level1/drift_ratio'}

  class Level:
    # Segments of two bytes at first and of eight after that.
    index_BS = np.repeat(np.arange(7), [2] * 4 + [8] * 3)[None]

  monkeypatch.setattr(evaluator, 'levels_of_long', lambda ids: (Level, Level))
  found = drift_figures(evaluator, documents(), period=8, length=32)
  assert found['level0/drift_ratio'] == 4 / 1
  with pytest.raises(ValueError, match='no document of 9999 bytes'):
    drift_figures(evaluator, documents(), period=9999, length=32)
