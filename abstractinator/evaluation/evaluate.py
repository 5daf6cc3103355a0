"""How good a run is: figures over whole documents."""

import operator
from collections.abc import Iterable

import jax
import numpy as np

from abstractinator.evaluation.coded_rows import (
  MEMORIES,
  CodedRows,
  slots_of_bytes,
)
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.level_statistics import (
  LevelStatistics,
  word_starts,
)
from abstractinator.evaluation.likelihood import expansion_bits, top_lm_bits
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.evaluation.windows import Passage, WindowBatch
from abstractinator.objective.by_level import ByLevel
from abstractinator.types import NUM_BYTES, PyTree

Figure = float | str
Figures = dict[str, Figure]


def evaluate(
  evaluator: Evaluator, passages: Iterable[Passage], *, decode: bool = True
) -> Figures:
  """Measures a run on passages, every id of which counts once.

  Likelihoods are over windows with context, see `likelihood`. What is said of
  segments and codes is of windows side by side, which is how texts are encoded:
  each byte is in one segment there, and each segment has one code.

  Args:
    evaluator: Of the run.
    passages: Whole documents, see `windows.DocumentPassages`; read twice.
    decode: Whether to decode from codes alone, the slowest part.

  Returns:
    `documents`, `bytes` and `entropy_model_bits_per_byte`; of an entropy model
    alone `entropy_model_byte_accuracy`, else, after the prefix of a level where
    there are several:

    expander_bits_per_byte, end_bits_per_byte: given the true codes.
    expander_bits_per_byte_zeroed_codes, ..._shuffled_codes: given no codes, and
      those of other segments; over windows side by side, as is
      expander_bits_per_byte_true_codes.
    ids_per_segment, bytes_per_segment, segment_bits_p50, _p95, _p99: what
      segments cost under the entropy model of the level, and
      segments_over_capacity_fraction: how many cost more than the
      code_capacity_bits that a code can say.
    live_code_fraction, codebook_perplexity, overflow_fraction.
    word_start_precision, _recall, _f1: starts of segments against those of
      words, without those that windows force.

    And of all levels: code_bits_per_byte, of the top codes under the top LM,
    the ends of documents included; where there is none that has a likelihood,
    under a unigram that learns as it goes (`code_model` says which);
    total_bits_per_byte, the sum of code, expander and end bits of all levels:
    an upper bound of what the text costs; teacher_forced_byte_accuracy; with
    `decode`, free_running_byte_accuracy and exact_document_fraction.

  Raises:
    ValueError: If there is nothing to count.
  """
  figures = figures_of(evaluator, passages, decode=decode)
  # A table begins with those of the whole.
  return figures.whole | figures.flattened()


def figures_of(
  evaluator: Evaluator, passages: Iterable[Passage], *, decode: bool = True
) -> ByLevel[Figure]:
  """Measures a run on passages, as `evaluate` does.

  Args:
    evaluator: Evaluator of the run.
    passages: Whole documents; read twice.
    decode: Whether to decode from codes alone, the slowest part.

  Returns:
    The figures of each level, and those of the whole.

  Raises:
    ValueError: If there is nothing to count.
  """
  figures, num_bytes = _likelihood(evaluator, passages)
  if evaluator.has_codes:
    figures |= _codes(evaluator, passages, num_bytes, decode)
  return figures


def _likelihood(
  evaluator: Evaluator, passages: Iterable[Passage]
) -> tuple[ByLevel[Figure], int]:
  """Returns figures of what text costs, and its number of bytes."""
  levels = evaluator.config.model.levels
  counts = CodeCounts(levels[-1].quantizer.stage_sizes)
  sums: ByLevel[float] | None = None
  documents = 0
  for scored in evaluator.score(passages):
    documents = scored.windows[-1][-1].passage + 1
    sums = _with_totals(sums, scored.sums)
    counts.add(scored.codes_BU[scored.is_paid_BU])
  if sums is None or not sums.whole['num_bytes']:
    raise ValueError('data: has no bytes, allowed: at least 1')
  num_bytes = int(sums.whole['num_bytes'])
  whole: Figures = {'documents': documents, 'bytes': num_bytes}
  per_byte: tuple[Figures, ...] = tuple(
    {f'{name}_per_byte': bits / num_bytes for name, bits in of_level.items()}
    for of_level in sums.levels
  )
  accuracy = sums.whole['num_right_bytes'] / num_bytes
  if not evaluator.has_codes:
    whole['entropy_model_byte_accuracy'] = accuracy
    return ByLevel(per_byte, whole), num_bytes
  parts = [bits / num_bytes for bits in top_lm_bits(sums)]
  code = sum(parts) if parts else counts.bits() / num_bytes
  paid = sum(bits / num_bytes for bits in expansion_bits(sums))
  return ByLevel(
    per_byte,
    whole
    | {
      'code_bits_per_byte': code,
      'code_model': 'top_lm' if parts else 'unigram',
      'total_bits_per_byte': code + paid,
      'teacher_forced_byte_accuracy': accuracy,
    },
  ), num_bytes


def _with_totals(sums: PyTree | None, rows: PyTree) -> PyTree:
  """Adds sums over rows, in float64, to a tree of sums; None is empty."""
  totals = jax.tree.map(
    lambda value_B: float(np.sum(value_B, dtype=np.float64)), rows
  )
  return totals if sums is None else jax.tree.map(operator.add, sums, totals)


class _Coded:
  """Sums over the rows of `Evaluator.code`."""

  def __init__(self, evaluator: Evaluator):
    levels = evaluator.config.model.levels
    self._queries = tuple(level.pooling.num_queries for level in levels)
    self.levels = [LevelStatistics(level) for level in levels]
    # For each level, by kind of codes.
    self.sums: tuple[dict[str, float], ...] | None = None
    self.num_right = self.num_decoded = 0.0
    # By document, whether all of it came back.
    self.is_exact: dict[int, bool] = {}

  def add(self, windows: WindowBatch, rows: CodedRows) -> None:
    """Adds a batch."""
    ids_BS, document_BS = windows.batch.ids_BS, windows.batch.document_BS
    before_BS = np.pad(document_BS, ((0, 0), (1, 0)), constant_values=-1)
    is_first_BS = document_BS != before_BS[:, :-1]
    is_asked_BS = (ids_BS < NUM_BYTES) & ~is_first_BS
    is_word_BS = word_starts(ids_BS, is_first_BS)
    slots = slots_of_bytes(rows.levels, self._queries)
    for level, coded, slot_BS in zip(
      self.levels, rows.levels, slots, strict=True
    ):
      level.add(
        coded.index_BS,
        coded.bits_BS,
        coded.is_short_BS,
        coded.codes_BU[coded.is_code_BU],
      )
      last_BS = np.pad(slot_BS, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
      level.add_starts(slot_BS != last_BS, is_word_BS, is_asked_BS)
    self.sums = _with_totals(self.sums, rows.sums)
    if rows.decoded is not None:
      self.num_right += float(rows.accuracy.total)
      self.num_decoded += float(rows.accuracy.count)
      self._compare(windows, rows)

  def _compare(self, windows: WindowBatch, rows: CodedRows) -> None:
    decoded = rows.decoded
    at_BP = decoded.rows.origin_BP * self._queries[-1]
    document_BP = np.take_along_axis(rows.top_document_BU, at_BP, axis=1)
    offset_L = np.arange(decoded.ids_BPL.shape[2])
    is_byte_BPL = offset_L < decoded.length_BP[..., None]
    is_byte_BPL &= decoded.rows.is_valid_BP[..., None]
    is_byte_BPL &= decoded.ids_BPL < NUM_BYTES
    for row, of_row in enumerate(windows.windows):
      for number, window in enumerate(of_row):
        is_mine_PL = is_byte_BPL[row] & (document_BP[row] == number)[:, None]
        truth = window.ids[window.ids < NUM_BYTES]
        is_exact = np.array_equal(decoded.ids_BPL[row][is_mine_PL], truth)
        was_exact = self.is_exact.get(window.passage, True)
        self.is_exact[window.passage] = was_exact and is_exact


def _codes(
  evaluator: Evaluator,
  passages: Iterable[Passage],
  num_bytes: int,
  decode: bool,
) -> ByLevel[Figure]:
  """Returns figures of segments, codes and what is decoded from them."""
  coded = _Coded(evaluator)
  for windows, rows in evaluator.code(passages, decode=decode):
    coded.add(windows, rows)
  levels: tuple[Figures, ...] = tuple(
    {
      f'expander_bits_per_byte_{kind}_codes': sums[kind] / num_bytes
      for kind in MEMORIES
    }
    | level.summary(num_bytes)
    for level, sums in zip(coded.levels, coded.sums or (), strict=True)
  )
  whole: Figures = {}
  if decode:
    whole['free_running_byte_accuracy'] = coded.num_right / max(
      coded.num_decoded, 1.0
    )
    whole['exact_document_fraction'] = float(
      np.mean(list(coded.is_exact.values()))
    )
  return ByLevel(levels, whole)
