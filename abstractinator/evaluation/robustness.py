"""Behavior of a run on disturbed, edited and repetitive texts.

Beside the letters of `types`, T counts texts and N the bytes of a text.
"""

import re
from collections.abc import Callable

import numpy as np

from abstractinator import types
from abstractinator.data.documents import Documents
from abstractinator.evaluation.evaluate import Figures, evaluate
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.windows import DocumentPassages, Passage
from abstractinator.objective.by_level import ByLevel
from abstractinator.types import NUM_BYTES

# Fraction of the characters or words that a disturbance changes.
RATE = 0.1
_WORD = re.compile(r'\w+')
_KEPT = (
  'entropy_model_bits_per_byte',
  'total_bits_per_byte',
  'teacher_forced_byte_accuracy',
  'entropy_model_byte_accuracy',
  'free_running_byte_accuracy',
)
# Settings of `drift_figures`.
_NUM_TEXTS = 8
_PERIOD_BYTES = 64
_LENGTH = 8192

# Disturbances of a character or of a word. The Byte Latent Transformer (Pagnoni
# et al., 2024) is compared with models of tokens under the same five kinds, at
# other rates. In ant speak, words are in upper case and spelled with spaces.
_CHARACTERS: dict[str, Callable[[str], str]] = {
  'drop': lambda c: '',
  'repeat': lambda c: 2 * c,
  'random_case': str.swapcase,
}
_WORDS: dict[str, Callable[[str], str]] = {
  'upper_case': str.upper,
  'ant_speak': lambda word: ' '.join(word.upper()),
}
KINDS = (*_CHARACTERS, *_WORDS)

# First byte, end and codes of a segment.
_PlacedSegment = tuple[int, int, tuple[int, ...]]


def disturb(
  text: bytes, kind: str, rate: float, rng: np.random.Generator
) -> bytes:
  """Disturbs a text.

  Args:
    text: Any bytes; each byte that is not UTF-8 counts as a character.
    kind: One of `KINDS`.
    rate: Fraction of the characters or words that change, 0 to 1.
    rng: Generator that chooses them.

  Returns:
    The disturbed text, which may be empty.
  """
  characters = text.decode('utf-8', errors='surrogateescape')
  if kind in _CHARACTERS:
    hits = rng.random(len(characters)) < rate
    change = _CHARACTERS[kind]
    found = ''.join(
      change(c) if hit else c for c, hit in zip(characters, hits, strict=True)
    )
  else:
    change = _WORDS[kind]
    found = _WORD.sub(
      lambda m: change(m[0]) if rng.random() < rate else m[0], characters
    )
  return found.encode('utf-8', errors='surrogateescape')


def disturbed_passages(documents: Documents, kind: str) -> DocumentPassages:
  """Returns whole documents, disturbed in the same way in each iteration.

  `kind` is one of `KINDS`.
  """

  def change(index: int, text: bytes) -> bytes:
    rng = np.random.default_rng([0, KINDS.index(kind), index])
    return disturb(text, kind, RATE, rng)

  return DocumentPassages(documents, change)


def noise_figures(
  evaluator: Evaluator, documents: Documents, *, decode: bool = True
) -> Figures:
  """Measures a run on disturbed documents, and the effect of one edit.

  Args:
    evaluator: Evaluator of the run.
    documents: Documents to disturb.
    decode: Whether to decode from codes alone.

  Returns:
    Figures of `evaluate` after 'noise/KIND/': `entropy_model_bits_per_byte` of
    the first level, `total_bits_per_byte` and accuracies, as far as the run has
    them, over the bytes of the disturbed text. For a run with codes also
    `edit_figures`.
  """
  found: Figures = {}
  for kind in KINDS:
    passages = disturbed_passages(documents, kind)
    figures = evaluate(evaluator, passages, decode=decode)
    first, *others = figures.levels
    kept = ByLevel((first, *({} for _ in others)), figures.whole).apply(
      lambda x: {name: x[name] for name in _KEPT if name in x}
    )
    found |= {f'noise/{kind}/{k}': v for k, v in kept.flattened().items()}
  if evaluator.has_codes:
    found |= edit_figures(evaluator, documents)
  return found


def edit_figures(evaluator: Evaluator, documents: Documents) -> Figures:
  """Measures the effect of one edited byte in the first row of each document.

  Args:
    evaluator: Evaluator of the run.
    documents: Documents to edit.

  Returns:
    For each level, about the segments of the edited text that the original text
    does not have with the same place and codes:
    edit_changed_segments: Mean number of these segments.
    edit_reach_bytes_p50, _p95: Percentiles of the number of bytes from the edit
      to the end of the last one.

  Raises:
    ValueError: If no document has a byte.
  """
  pairs, places = [], []
  size = evaluator.config.data.sequence_length
  rng = np.random.default_rng(0)
  for document in documents:
    text = document.read_bytes()[: size - 1]
    if not text:
      continue
    ids = types.bytes_to_ids(text)
    edited, place = ids.copy(), int(rng.integers(len(text)))
    edited[place] = (ids[place] + rng.integers(1, NUM_BYTES)) % NUM_BYTES
    pairs += [Passage(ids), Passage(edited)]
    places.append(place)
  if not places:
    raise ValueError('data: has no bytes, allowed: at least 1')
  coded = _segments_of_rows(evaluator, pairs)
  found: list[Figures] = []
  for level in range(len(coded[0])):
    counts, reaches = [], []
    for before, after, place in zip(
      coded[::2], coded[1::2], places, strict=True
    ):
      changed = after[level] - before[level]
      last = max((stop for _, stop, _ in changed), default=place)
      counts.append(len(changed))
      reaches.append(max(last - place, 0))
    of_level: Figures = {'edit_changed_segments': float(np.mean(counts))}
    for p in (50, 95):
      of_level[f'edit_reach_bytes_p{p}'] = float(np.percentile(reaches, p))
    found.append(of_level)
  return ByLevel(tuple(found)).flattened()


def _segments_of_rows(
  evaluator: Evaluator, passages: list[Passage]
) -> list[list[set[_PlacedSegment]]]:
  """Returns the segments of each passage at each level."""
  found = []
  for windows, levels in evaluator.levels(passages):
    for row in range(len(windows.windows)):
      of_row = []
      for level in levels:
        slot_S = np.asarray(level.byte_slot_BS)[row]
        slot_S, n = slot_S[slot_S >= 0], level.num_queries
        starts = np.flatnonzero(np.diff(slot_S, prepend=-1))
        stops = [*starts[1:], len(slot_S)]
        of_row.append(
          {
            (int(a), int(b), tuple(level.codes_BU[row, s * n : (s + 1) * n]))
            for a, b, s in zip(starts, stops, slot_S[starts], strict=True)
          }
        )
      found.append(of_row)
  return found


def drift_figures(
  evaluator: Evaluator,
  documents: Documents,
  *,
  period: int = _PERIOD_BYTES,
  length: int = _LENGTH,
) -> Figures:
  """Measures the growth of segments along texts that repeat themselves.

  A model that has read a text before finds nothing uncertain in it, so that a
  rule that cuts by entropy stops cutting.

  Args:
    evaluator: Evaluator of a run with codes.
    documents: Documents; the texts repeat the first bytes of the first eight
      that are long enough.
    period: Number of bytes that repeat.
    length: Number of bytes of each text, which is coded as one row.

  Returns:
    For each level `drift_ratio`: mean bytes of a segment in the last quarter
    over those in the first quarter, 1 without drift.

  Raises:
    ValueError: If no document is long enough.
  """
  long = [document for document in documents if document.length >= period]
  if not long:
    raise ValueError(
      f'data: has no document of {period} bytes, allowed: at least one for'
      ' --drift'
    )
  num_levels = len(evaluator.config.model.levels)
  starts: list[list[np.ndarray]] = [[] for _ in range(num_levels)]
  for document in long[:_NUM_TEXTS]:
    text = document.read_bytes()[:period]
    ids_N = np.resize(types.bytes_to_ids(text, add_eos=False), length)
    for of_level, level in zip(
      starts, evaluator.levels_of_long(ids_N), strict=True
    ):
      of_level.append(np.diff(level.byte_slot_BS[0], prepend=-1) > 0)
  quarter = length // 4
  found: list[Figures] = []
  for of_level in starts:
    is_start_TN = np.stack(of_level)
    first = is_start_TN[:, :quarter].sum()
    last = is_start_TN[:, -quarter:].sum()
    found.append({'drift_ratio': float(first / max(last, 1))})
  return ByLevel(tuple(found)).flattened()
