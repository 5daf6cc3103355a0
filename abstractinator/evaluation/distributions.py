"""Histograms of what segments are like, counted on the host."""

from typing import NamedTuple

import numpy as np

from abstractinator.config import LevelConfig
from abstractinator.evaluation.coded_rows import CodedLevel
from abstractinator.objective.by_level import ByLevel

_ENTROPY_BINS = 50


class Histogram(NamedTuple):
  """Counts of K bins.

  Attributes:
    counts: [K].
    edges: [K + 1], ascending; None where bin k is the integer k.
  """

  counts: np.ndarray
  edges: np.ndarray | None = None


class Distributions:
  """Entropies of ids and lengths of segments, of every level."""

  def __init__(self, configs: tuple[LevelConfig, ...]):
    """Nothing was seen yet.

    Args:
      configs: Of the levels, bottom first.
    """
    self._configs = configs
    self._entropies: list[list[np.ndarray]] = [[] for _ in configs]
    self._lengths = [
      np.zeros(c.segmentation.max_length + 1, np.int64) for c in configs
    ]

  def add(self, levels: tuple[CodedLevel, ...]) -> None:
    """Adds rows, on the host."""
    for number, level in enumerate(levels):
      is_id_BS = level.index_BS >= 0
      self._entropies[number].append(level.entropy_bits_BS[is_id_BS])
      for index_S, is_id_S in zip(level.index_BS, is_id_BS, strict=True):
        length_P = np.bincount(index_S[is_id_S])
        counts = self._lengths[number]
        counts += np.bincount(length_P, minlength=len(counts))

  def histograms(self) -> ByLevel[Histogram]:
    """Returns `entropy_bits` and `segment_length` of each level."""
    found = []
    for entropies, lengths in zip(self._entropies, self._lengths, strict=True):
      bits = np.concatenate(entropies).astype(np.float64)
      found.append(
        {
          'entropy_bits': Histogram(*np.histogram(bits, _ENTROPY_BINS)),
          'segment_length': Histogram(lengths),
        }
      )
    return ByLevel(tuple(found))
