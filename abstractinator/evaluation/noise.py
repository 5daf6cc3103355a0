"""How well a run does on text that is disturbed, and how far an edit reaches.

The five disturbances are those that byte models are compared with: characters
that are dropped, repeated or in the other case, words in upper case or spelled
apart like an ant speaks. Each hits a tenth of the characters or words.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np

from abstractinator import types
from abstractinator.data.documents import Documents
from abstractinator.evaluation.coded_rows import slots_of_bytes
from abstractinator.evaluation.evaluate import Figures, figures_of
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.windows import Passage
from abstractinator.objective.by_level import ByLevel
from abstractinator.types import NUM_BYTES

RATE = 0.1
_WORD = re.compile(r'\w+')
_KEPT = (
  'entropy_model_bits_per_byte',
  'total_bits_per_byte',
  'teacher_forced_byte_accuracy',
  'entropy_model_byte_accuracy',
  'free_running_byte_accuracy',
)

# What becomes of a character, or of a word, that is hit.
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


def disturb(
  text: bytes, kind: str, rate: float, rng: np.random.Generator
) -> bytes:
  """Disturbs a text.

  Args:
    text: Any bytes; those that are no UTF-8 count as a character each.
    kind: One of `KINDS`.
    rate: Part of the characters or words that is hit, 0 to 1.
    rng: What decides which.

  Returns:
    The other text; without characters left, none.
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


class DisturbedPassages:
  """Whole documents, disturbed; the same ones each time they are read.

  Attributes:
    documents: What is read.
    kind: See `disturb`.
  """

  def __init__(self, documents: Documents, kind: str, seed: int = 0):
    self.documents = documents
    self.kind = kind
    self._seed = seed

  def __iter__(self) -> Iterator[Passage]:
    number = KINDS.index(self.kind)
    for index in range(self.documents.num_documents):
      length = int(self.documents.lengths[index])
      text = self.documents.read(index, 0, length)
      rng = np.random.default_rng([self._seed, number, index])
      yield Passage(types.bytes_to_ids(disturb(text, self.kind, RATE, rng)))


def noise_figures(
  evaluator: Evaluator, documents: Documents, *, decode: bool = True
) -> Figures:
  """Bits per byte and accuracy under each disturbance, and `edit_figures`.

  Args:
    evaluator: Of the run.
    documents: What to disturb.
    decode: See `evaluate`.

  Returns:
    After `noise/KIND/`, as `evaluate` has them, of the disturbed text and per
    byte of it: `entropy_model_bits_per_byte`, `total_bits_per_byte` and
    accuracies, as far as the run has them.
  """
  found: Figures = {}
  for kind in KINDS:
    passages = DisturbedPassages(documents, kind)
    figures = figures_of(evaluator, passages, decode=decode)
    first, *others = figures.levels
    kept = ByLevel((first, *({} for _ in others)), figures.whole).apply(
      lambda x: {name: x[name] for name in _KEPT if name in x}
    )
    found |= {f'noise/{kind}/{k}': v for k, v in kept.flattened().items()}
  if evaluator.has_codes:
    found |= edit_figures(evaluator, documents)
  return found


def edit_figures(
  evaluator: Evaluator, documents: Documents, seed: int = 0
) -> Figures:
  """What one edited byte changes: one edit in the first row of each document.

  Args:
    evaluator: Of the run.
    documents: What to edit.
    seed: Decides where.

  Returns:
    After the prefix of each level, of the segments of the edited text that the
    other has not, with the same place and code: `edit_changed_segments`, their
    mean number; `edit_reach_bytes_p50` and `_p95`, from the edit to the end of
    the last of them.

  Raises:
    ValueError: If no document has a byte.
  """
  pairs, places = [], []
  size = evaluator.config.data.sequence_length
  rng = np.random.default_rng(seed)
  for index in range(documents.num_documents):
    length = min(int(documents.lengths[index]), size - 1)
    if not length:
      continue
    ids = types.bytes_to_ids(documents.read(index, 0, length))
    edited, place = ids.copy(), int(rng.integers(length))
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
) -> list[list[set[tuple[int, int, tuple[int, ...]]]]]:
  """Of each passage and level: first byte, end and codes of each segment."""
  queries = tuple(c.pooling.num_queries for c in evaluator.config.model.levels)
  found = []
  for windows, levels in evaluator.levels(passages):
    slots = slots_of_bytes(levels, queries)
    for row in range(len(windows.windows)):
      of_row = []
      for slot_BS, level, n in zip(slots, levels, queries, strict=True):
        slot_S = slot_BS[row][slot_BS[row] >= 0]
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
