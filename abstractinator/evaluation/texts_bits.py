"""What each of many texts costs: the likelihood of `evaluate`, text by text.

Of a run with codes it is an upper bound: the codes of the top and the ends of
documents, and at every level the ids given the codes above them and the ends of
their segments. A text has other codes than those of its encoding from which it
could come, and these are left out.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.likelihood import expansion_bits, top_lm_bits
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.evaluation.windows import Passage


@dataclasses.dataclass
class TextBits:
  """What a text costs.

  Attributes:
    bits: Of the ids that count.
    num_bytes: Bytes of them.
    num_right_bytes: Those that are the likeliest, given the true codes.
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
  """Scores passages, each window in a row of its own.

  Args:
    evaluator: Of the run.
    passages: What to score.
    entropy_model_only: Whether to take the entropy model of the first level,
      whose likelihood is exact, in the place of the bound.
    is_corpus: Whether, where no top LM predicts codes, the unigram of codes
      learns from one passage to the next, as in `evaluate`. Else it begins
      anew with each, at the codes of its context.

  Returns:
    Of each passage. With `is_corpus` their sums are those of `evaluate`, but
    for rows that run short of slots, which it shares between documents.
  """
  levels = evaluator.config.model.levels
  is_bound = evaluator.has_codes and not entropy_model_only
  codes = _CodeBits(levels[-1].quantizer.stage_sizes, is_corpus)
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
      if is_bound and not code_bits:
        is_paid_U = scored.is_paid_BU[row]
        is_known_U = scored.is_code_BU[row] & ~is_paid_U
        codes_U = scored.codes_BU[row]
        text.bits += codes.add(
          window.passage, codes_U[is_known_U], codes_U[is_paid_U]
        )
  return found


class _CodeBits:
  """Bits of codes under a unigram that learns as it goes."""

  def __init__(self, stage_sizes: tuple[int, ...], is_corpus: bool):
    self._stage_sizes, self._is_corpus = stage_sizes, is_corpus
    self._counts = CodeCounts(stage_sizes)
    self._passage = -1

  def add(self, passage: int, known_N: np.ndarray, paid_N: np.ndarray) -> float:
    """Bits of the codes that are paid for, of a window."""
    if passage != self._passage and not self._is_corpus:
      # Later windows begin with codes that earlier ones have paid for.
      self._counts = CodeCounts(self._stage_sizes)
      self._counts.add(known_N)
    self._passage = passage
    before = self._counts.bits()
    self._counts.add(paid_N)
    return self._counts.bits() - before
