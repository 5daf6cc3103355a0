"""Figures of a run over documents, and the cost of each text."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from abstractinator import types
from abstractinator.codes import codes as codes_lib
from abstractinator.evaluation.coded_rows import SUBSTITUTES, CodedRows
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.level_statistics import (
  LevelStatistics,
  word_starts,
)
from abstractinator.evaluation.likelihood import expansion_bits, top_lm_bits
from abstractinator.evaluation.reconstruction import free_running_counts
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.evaluation.windows import Passage, WindowBatch
from abstractinator.model.pyramid import DecodedRows
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.metrics import price_of_codes
from abstractinator.types import NUM_BYTES, PyTree

Figure = float | str
Figures = dict[str, Figure]


def evaluate(
  evaluator: Evaluator, passages: Iterable[Passage], *, decode: bool = True
) -> ByLevel[Figure]:
  """Measures a run on passages, each id of which is scored once.

  Likelihoods are over windows with context; see `likelihood`. Statistics of
  segments and codes are over windows that lie side by side, as texts are
  encoded: there each byte is in one segment, and each segment has one code.

  Args:
    evaluator: Evaluator of the run.
    passages: Whole documents, see `windows.DocumentPassages`; they are read
      twice.
    decode: Whether to decode from codes alone, which takes the most time.

  Returns:
    Figures of each level and of the whole.

    For an entropy model alone `entropy_model_bits_per_byte` of the first level,
    and of the whole `entropy_model_byte_accuracy`, `documents` and `bytes`. For
    a run with codes, for each level:

    entropy_model_bits_per_byte: Cost of the ids under the entropy model.
    expander_bits_per_byte, end_bits_per_byte: Cost of the ids and of the ends
      of segments given the true codes.
    expander_bits_per_byte_true_codes, ..._zeroed_codes, ..._shuffled_codes:
      Cost of the ids given the true codes, no codes and the codes of other
      segments, over windows that lie side by side.
    ids_per_segment, bytes_per_segment: Mean sizes of segments.
    segment_bits_p50, _p95, _p99: Percentiles of the cost of a segment under the
      entropy model of the level.
    segments_over_capacity_fraction: Fraction of segments that cost more than
      `code_capacity_bits`, the most that a code can say.
    live_code_fraction, codebook_perplexity: Use of the codes.
    overflow_fraction: Fraction of ids that were cut for want of slots.
    word_start_precision, _recall, _f1: Starts of segments against starts of
      words, apart from the starts of windows.

    And for the whole:

    documents, bytes: Numbers of documents and bytes.
    code_bits_per_byte: Cost of the top codes and of the ends of documents under
      a discrete top LM, or else of the top codes under an adaptive unigram;
      `code_model` is 'top_lm' or 'unigram'.
    total_bits_per_byte: Sum of the code, expander and end bits of all levels,
      an upper bound on the cost of the text.
    teacher_forced_byte_accuracy: Fraction of bytes predicted right given their
      codes and the true bytes before them.
    free_running_byte_accuracy, exact_document_fraction: Fraction of bytes that
      come back from the top codes alone, and of documents that come back
      without an error; only with `decode`.

  Raises:
    ValueError: If there are no bytes.
  """
  figures, num_bytes = _likelihood_figures(evaluator, passages)
  if evaluator.has_codes:
    figures |= _code_figures(evaluator, passages, num_bytes, decode)
  return figures


def _likelihood_figures(
  evaluator: Evaluator, passages: Iterable[Passage]
) -> tuple[ByLevel[Figure], int]:
  """Returns the figures of what text costs, and its number of bytes."""
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
  total = code + sum(bits / num_bytes for bits in expansion_bits(sums))
  flat = sums.levels[0]['entropy_model_bits'] / num_bytes
  whole |= {
    'code_bits_per_byte': code,
    'code_model': 'top_lm' if parts else 'unigram',
    'total_bits_per_byte': total,
    **price_of_codes(flat, total, code),
    'teacher_forced_byte_accuracy': accuracy,
  }
  if 'bits_back_bits' in sums.whole:
    bits = sums.whole['bits_back_bits'] + sums.whole['top_lm_end_bits']
    whole['bits_back_bits_per_byte'] = bits / num_bytes
  return ByLevel(per_byte, whole), num_bytes


def _with_totals(sums: PyTree | None, rows: PyTree) -> PyTree:
  """Adds sums over rows, in float64, to a tree of sums; None is empty."""
  totals = jax.tree.map(
    lambda value_B: float(np.sum(value_B, dtype=np.float64)), rows
  )
  return totals if sums is None else jax.tree.map(operator.add, sums, totals)


def _code_figures(
  evaluator: Evaluator,
  passages: Iterable[Passage],
  num_bytes: int,
  decode: bool,
) -> ByLevel[Figure]:
  """Returns the figures of segments, codes and the text decoded from them."""
  levels = [LevelStatistics(c) for c in evaluator.config.model.levels]
  # Bits of each level by the codes that its expander is given.
  sums: tuple[dict[str, float], ...] | None = None
  num_right = num_total = 0
  is_exact: dict[int, bool] = {}
  for windows, rows in evaluator.code(passages, decode=decode):
    sums = _with_totals(sums, rows.bits)
    words = _words(windows)
    for level, coded in zip(levels, rows.levels, strict=True):
      level.add(coded, *words)
    if rows.decoded is None:
      continue
    right_B, total_B = free_running_counts(
      rows.decoded, rows.ids_BS, rows.levels[-1].byte_slot_BS
    )
    num_right += int(right_B.sum())
    num_total += int(total_B.sum())
    for passage, is_equal in _comparisons(windows, rows, rows.decoded):
      is_exact[passage] = is_exact.get(passage, True) and is_equal
  figures: list[Figures] = []
  for level, bits in zip(levels, sums or (), strict=True):
    of_level: Figures = {
      f'expander_bits_per_byte_{name}_codes': bits[name] / num_bytes
      for name in SUBSTITUTES
    }
    of_level.update(level.summary(num_bytes))
    figures.append(of_level)
  whole: Figures = {}
  if decode:
    whole['free_running_byte_accuracy'] = num_right / max(num_total, 1)
    whole['exact_document_fraction'] = float(np.mean([*is_exact.values()]))
  return ByLevel(tuple(figures), whole)


def _words(windows: WindowBatch) -> tuple[np.ndarray, np.ndarray]:
  """Returns the masks of words that `LevelStatistics.add` compares with."""
  ids_BS = np.asarray(windows.batch.ids_BS)
  is_first_BS = np.diff(windows.batch.document_BS, axis=1, prepend=-1) != 0
  is_asked_BS = (ids_BS < NUM_BYTES) & ~is_first_BS
  return word_starts(ids_BS, is_first_BS), is_asked_BS


def _comparisons(
  windows: WindowBatch, rows: CodedRows, decoded: DecodedRows
) -> Iterator[tuple[int, bool]]:
  """Yields, for each window, its passage and whether all its bytes are back."""
  at_BP = np.asarray(decoded.rows.origin_BP) * rows.levels[-1].num_queries
  document_BP = np.take_along_axis(
    np.asarray(rows.top_document_BU), at_BP, axis=1
  )
  ids_BPL, length_BP, is_valid_BP = jax.device_get(
    (decoded.ids_BPL, decoded.length_BP, decoded.rows.is_valid_BP)
  )
  for row, of_row in enumerate(windows.windows):
    one = slice(row, row + 1)
    for number, window in enumerate(of_row):
      is_mine_1P = is_valid_BP[one] & (document_BP[one] == number)
      text = codes_lib.text(ids_BPL[one], length_BP[one], is_mine_1P)
      yield window.passage, text == types.ids_to_bytes(window.ids)


@dataclasses.dataclass
class TextBits:
  """Cost of a text.

  Attributes:
    bits: Bits of the scored ids.
    num_bytes: Number of scored bytes.
    num_right_bytes: Number of scored bytes that are the most likely ones given
      the true codes and the bytes before them.
  """

  bits: float = 0.0
  num_bytes: int = 0
  num_right_bytes: int = 0


def texts_bits(
  evaluator: Evaluator,
  passages: Sequence[Passage],
  *,
  entropy_model_only: bool = False,
  is_corpus: bool = False,
) -> list[TextBits]:
  """Scores passages one by one, each window in a row of its own.

  For a run with codes the bits are those of `total_bits_per_byte`, an upper
  bound: the text could also come from other codes than those of its encoding,
  and their probability is left out.

  Args:
    evaluator: Evaluator of the run.
    passages: Passages to score.
    entropy_model_only: Whether to score with the entropy model of the first
      level, whose likelihood is exact, in place of the bound.
    is_corpus: Whether, without a discrete top LM, the unigram of the codes
      learns from one passage to the next, as in `evaluate`. Otherwise it begins
      anew with the codes of the context of each passage.

  Returns:
    The cost of each passage. With `is_corpus` the costs add up to those of
    `evaluate`, except for rows that run short of slots, which `evaluate` shares
    between documents.
  """
  stage_sizes = evaluator.config.model.levels[-1].quantizer.stage_sizes
  is_bound = evaluator.has_codes and not entropy_model_only
  codes, last = CodeCounts(stage_sizes), -1
  found = [TextBits() for _ in passages]
  for scored in evaluator.score(passages, alone=True):
    sums = scored.sums
    code_bits = top_lm_bits(sums)
    paid = [sums.levels[0]['entropy_model_bits']]
    if is_bound:
      paid = expansion_bits(sums) + code_bits
    for row, (window,) in enumerate(scored.windows):
      text = found[window.passage]
      text.bits += sum(float(bits_B[row]) for bits_B in paid)
      text.num_bytes += int(sums.whole['num_bytes'][row])
      text.num_right_bytes += int(sums.whole['num_right_bytes'][row])
      if not is_bound or code_bits:
        continue
      codes_U, is_paid_U = scored.codes_BU[row], scored.is_paid_BU[row]
      if window.passage != last and not is_corpus:
        # Later windows begin with codes that earlier ones have paid for.
        codes = CodeCounts(stage_sizes)
        codes.add(codes_U[scored.is_code_BU[row] & ~is_paid_U])
      last, before = window.passage, codes.bits()
      codes.add(codes_U[is_paid_U])
      text.bits += codes.bits() - before
  return found
