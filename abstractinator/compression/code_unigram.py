"""Codes under a unigram that learns as it goes."""

import copy

import numpy as np

from abstractinator.compression.byte_model import PRECISION_BITS
from abstractinator.compression.segment_coder import Code
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.ops.digits import place_values

# Codes that one table serves: a part of those that it has learned from.
_PART, _MOST = 16, 64


class CodeUnigram:
  """What `evaluate` takes codes to cost, in tables of whole numbers.

  Who writes and who reads give it the same codes in the same order.
  """

  def __init__(self, stage_sizes: tuple[int, ...]):
    """Knows nothing.

    Args:
      stage_sizes: Values of each digit of a code.
    """
    self._stage_sizes = stage_sizes
    self._counts = CodeCounts(stage_sizes)

  def copy(self) -> 'CodeUnigram':
    """One that learns apart."""
    return copy.deepcopy(self)

  def code(self, codes_N: np.ndarray, code: Code) -> np.ndarray:
    """Codes [N] int32, which are found where `code` reads."""
    found = [codes_N[:0]]
    values = (1,)
    if len(self._counts.counts) > 1:
      values = place_values(self._stage_sizes)
    start = 0
    while start < len(codes_N):
      seen = int(self._counts.counts[0].sum())
      stop = start + min(max(seen // _PART, 1), _MOST)
      part_N, start = codes_N[start:stop], stop
      coded_N = np.zeros_like(part_N)
      for counts_V, value in zip(self._counts.counts, values, strict=True):
        digits_N = part_N // value % len(counts_V)
        coded_N += value * code(_frequencies(counts_V), digits_N)
      self._counts.add(coded_N)
      found.append(coded_N)
    return np.concatenate(found)


def _frequencies(counts_V: np.ndarray) -> np.ndarray:
  """[V] int32 that add up to 2^PRECISION_BITS, after Krichevsky-Trofimov."""
  total, size = 1 << PRECISION_BITS, len(counts_V)
  share_V = (2 * counts_V + 1) * (total - size)
  found_V = 1 + share_V // (2 * int(counts_V.sum()) + size)
  found_V[np.argmax(found_V)] += total - found_V.sum()
  return found_V.astype(np.int32)
