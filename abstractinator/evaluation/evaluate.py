"""How good a run is: figures over whole documents."""

from collections.abc import Iterable

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
from abstractinator.evaluation.likelihood import TOP_LM_SUMS, expansion_sums
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.evaluation.windows import Passage, WindowBatch
from abstractinator.objective.losses import prefixes
from abstractinator.types import NUM_BYTES

Figures = dict[str, float]


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
  figures, num_bytes = _likelihood(evaluator, passages)
  if evaluator.has_codes:
    figures |= _codes(evaluator, passages, num_bytes, decode)
  return figures


def _likelihood(evaluator, passages) -> tuple[Figures, int]:
  """Figures of what text costs, and how many bytes it has."""
  levels = evaluator.config.model.levels
  counts = CodeCounts(levels[-1].quantizer.stage_sizes)
  sums: dict[str, float] = {}
  documents = 0
  for scored in evaluator.score(passages):
    documents = scored.windows[-1][-1].passage + 1
    for name, value_B in scored.sums.items():
      total = float(np.sum(value_B, dtype=np.float64))
      sums[name] = sums.get(name, 0.0) + total
    counts.add(scored.codes_BU[scored.is_paid_BU])
  num_bytes = int(sums.pop('num_bytes', 0))
  if not num_bytes:
    raise ValueError('data: has no bytes, allowed: at least 1')
  accuracy = sums.pop('num_right_bytes') / num_bytes
  per_byte = {
    _per_byte(name): value / num_bytes for name, value in sums.items()
  }
  found: Figures = {'documents': documents, 'bytes': num_bytes}
  if not evaluator.has_codes:
    found['entropy_model_byte_accuracy'] = accuracy
    return found | per_byte, num_bytes
  parts = [per_byte.pop(_per_byte(name), None) for name in TOP_LM_SUMS]
  is_top_lm = None not in parts
  code = sum(parts) if is_top_lm else counts.bits() / num_bytes
  paid = [per_byte[_per_byte(name)] for name in expansion_sums(len(levels))]
  return found | per_byte | {
    'code_bits_per_byte': code,
    'code_model': 'top_lm' if is_top_lm else 'unigram',
    'total_bits_per_byte': code + sum(paid),
    'teacher_forced_byte_accuracy': accuracy,
  }, num_bytes


def _per_byte(name: str) -> str:
  return name.replace('_bits', '_bits_per_byte')


class _Coded:
  """Sums over the rows of `Evaluator.code`."""

  def __init__(self, evaluator: Evaluator):
    levels = evaluator.config.model.levels
    self._queries = tuple(level.pooling.num_queries for level in levels)
    self.levels = [LevelStatistics(level) for level in levels]
    self.sums: dict[str, float] = {}
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
    for name, value_B in rows.sums.items():
      total = float(np.sum(value_B, dtype=np.float64))
      self.sums[name] = self.sums.get(name, 0.0) + total
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


def _codes(evaluator, passages, num_bytes, decode) -> Figures:
  coded = _Coded(evaluator)
  for windows, rows in evaluator.code(passages, decode=decode):
    coded.add(windows, rows)
  found: Figures = {}
  for prefix, level in zip(
    prefixes(len(coded.levels)), coded.levels, strict=True
  ):
    for kind in MEMORIES:
      bits = coded.sums[f'{prefix}expander_bits_with_{kind}_codes']
      name = f'{prefix}expander_bits_per_byte_{kind}_codes'
      found[name] = bits / num_bytes
    summary = level.summary(num_bytes)
    found |= {prefix + name: value for name, value in summary.items()}
  if decode:
    found['free_running_byte_accuracy'] = coded.num_right / max(
      coded.num_decoded, 1.0
    )
    found['exact_document_fraction'] = float(
      np.mean(list(coded.is_exact.values()))
    )
  return found
