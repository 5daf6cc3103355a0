"""What codes cost where no model of them is at hand, and how they are used."""

import dataclasses
import math

import numpy as np

from abstractinator.objective.metrics import MAX_COUNTED_CODES
from abstractinator.ops.digits import place_values


@dataclasses.dataclass
class CodeCounts:
  """How often each code was used; of too many codes, each digit.

  Attributes:
    stage_sizes: Values of each digit.
    counts: One histogram, int64, of all codes, or one of each digit.
  """

  stage_sizes: tuple[int, ...]
  counts: tuple[np.ndarray, ...] = ()

  def __post_init__(self):
    num_codes = math.prod(self.stage_sizes)
    self._is_whole = num_codes <= MAX_COUNTED_CODES
    sizes = (num_codes,) if self._is_whole else self.stage_sizes
    self.counts = tuple(np.zeros(size, np.int64) for size in sizes)

  def add(self, codes_N: np.ndarray) -> None:
    """Counts codes, [N] integers."""
    values = (1,) if self._is_whole else place_values(self.stage_sizes)
    for counts, value in zip(self.counts, values, strict=True):
      counts += np.bincount(
        codes_N // value % len(counts), minlength=len(counts)
      )

  def bits(self) -> float:
    """What all of them cost when each is predicted from those before it.

    Predicted with the frequencies so far, half a use added to each: the
    estimator of Krichevsky and Trofimov. Unlike the entropy of the final
    frequencies it is a likelihood, which adds up to 1 over all sequences; and
    it does not depend on the order.
    """
    return sum(map(_sequential_bits, self.counts))

  def perplexity(self) -> float:
    """2 to the entropy of the frequencies, over digits multiplied."""
    return 2.0 ** sum(map(_entropy_bits, self.counts))

  def live_fraction(self) -> float:
    """Codes used at all; of digits the mean over stages."""
    return float(np.mean([np.mean(counts > 0) for counts in self.counts]))


def _sequential_bits(counts: np.ndarray) -> float:
  used = counts[counts > 0].tolist()
  total, half = sum(used), len(counts) / 2
  nats = math.lgamma(total + half) - math.lgamma(half)
  nats -= math.fsum(math.lgamma(n + 0.5) - math.lgamma(0.5) for n in used)
  return nats / math.log(2.0)


def _entropy_bits(counts: np.ndarray) -> float:
  p = counts[counts > 0] / max(counts.sum(), 1)
  return float(-np.sum(p * np.log2(p)))
