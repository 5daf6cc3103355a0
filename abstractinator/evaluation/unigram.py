"""Counts of codes, and the cost of codes under an adaptive unigram."""

import dataclasses
import math

import numpy as np

from abstractinator.objective import metrics
from abstractinator.ops.digits import place_values


@dataclasses.dataclass
class CodeCounts:
  """Number of times that each code was used.

  If there are more than `metrics.MAX_COUNTED_CODES` codes, the digits of each
  stage are counted instead.

  Attributes:
    stage_sizes: Number of values of each digit of a code.
    counts: One histogram of all codes, or one of the digits of each stage,
      int64.
  """

  stage_sizes: tuple[int, ...]
  counts: tuple[np.ndarray, ...] = ()

  def __post_init__(self) -> None:
    num_codes = math.prod(self.stage_sizes)
    self._is_whole = num_codes <= metrics.MAX_COUNTED_CODES
    sizes = (num_codes,) if self._is_whole else self.stage_sizes
    self.counts = tuple(np.zeros(size, np.int64) for size in sizes)

  def add(self, codes_N: np.ndarray) -> None:
    """Counts codes, [N] int."""
    values = (1,) if self._is_whole else place_values(self.stage_sizes)
    for counts, value in zip(self.counts, values, strict=True):
      counts += np.bincount(
        codes_N // value % len(counts), minlength=len(counts)
      )

  def bits(self) -> float:
    """Computes the cost of all counted codes under an adaptive unigram, bits.

    Each code is predicted from the counts of the codes before it, with half a
    use added to each count: the estimator of Krichevsky and Trofimov (1981).
    Unlike the entropy of the final frequencies, the cost is -log2 of a
    probability, which adds up to 1 over all sequences of codes. It does not
    depend on the order of the codes, which gives the closed form

      log(G(n + K/2) / G(K/2)) - sum_k log(G(n_k + 1/2) / G(1/2))

    in nats, where G is the gamma function, n_k the count of code k of K, and n
    the sum of the counts.
    """
    return sum(map(_sequential_bits, self.counts))

  def perplexity(self) -> float:
    """Computes 2 to the entropy of the frequencies; digits are multiplied."""
    return 2.0 ** sum(metrics.code_statistics(x)[0] for x in self.counts)

  def live_fraction(self) -> float:
    """Computes the fraction of codes that were used; for digits, the mean."""
    return float(np.mean([metrics.code_statistics(x)[1] for x in self.counts]))


def _sequential_bits(counts: np.ndarray) -> float:
  used = counts[counts > 0].tolist()
  total, half = sum(used), len(counts) / 2
  nats = math.lgamma(total + half) - math.lgamma(half)
  nats -= math.fsum(math.lgamma(n + 0.5) - math.lgamma(0.5) for n in used)
  return nats / math.log(2.0)
