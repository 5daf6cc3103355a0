"""Statistics of the segments and codes of levels, counted on the host."""

import math
from typing import NamedTuple

import numpy as np

from abstractinator.codes import codes as codes_lib
from abstractinator.config import LevelConfig
from abstractinator.evaluation.coded_rows import CodedLevel
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.objective.by_level import ByLevel

_PERCENTILES = (50, 95, 99)
_ENTROPY_BINS = 50


class LevelStatistics:
  """Statistics of a level over rows that are added one batch at a time."""

  def __init__(self, config: LevelConfig):
    """Starts without rows of the level that `config` describes."""
    self._capacity_bits = config.pooling.num_queries * math.log2(
      config.quantizer.num_codes
    )
    self._codes = CodeCounts(config.quantizer.stage_sizes)
    self._segment_bits: list[np.ndarray] = []
    self._num_ids = self._num_short_ids = 0
    self._num_starts = self._num_words = self._num_both = 0

  def add(
    self, level: CodedLevel, is_word_BS: np.ndarray, is_asked_BS: np.ndarray
  ) -> None:
    """Adds rows.

    Args:
      level: Rows of the level, on the host.
      is_word_BS: True for bytes that begin a word, [B, S of the first level]
        bool.
      is_asked_BS: True for bytes whose starts of words and of segments are
        compared, [B, S of the first level] bool. It leaves out bytes at which
        every segment has to start.
    """
    index_BS, bits_BS = np.asarray(level.index_BS), np.asarray(level.bits_BS)
    is_id_BS = index_BS >= 0
    self._num_ids += int(is_id_BS.sum())
    self._num_short_ids += int((level.is_short_BS & is_id_BS).sum())
    for index_S, bits_S, is_id_S in zip(
      index_BS, bits_BS, is_id_BS, strict=True
    ):
      total = np.bincount(index_S[is_id_S], weights=bits_S[is_id_S])
      self._segment_bits.append(total.astype(np.float32))
    self._codes.add(np.asarray(level.codes_BU)[np.asarray(level.is_code_BU)])
    is_start_BS = np.diff(level.byte_slot_BS, axis=1, prepend=-1) != 0
    self._num_starts += int((is_start_BS & is_asked_BS).sum())
    self._num_words += int((is_word_BS & is_asked_BS).sum())
    self._num_both += int((is_start_BS & is_word_BS & is_asked_BS).sum())

  def summary(self, num_bytes: int) -> dict[str, float]:
    """Computes the figures of the level.

    Args:
      num_bytes: Number of bytes that its segments stand for.

    Returns:
      Figures by name, as `evaluate.evaluate` documents them. Precision, recall
      and F1 are 0 if nothing starts.
    """
    bits = np.concatenate(self._segment_bits).astype(np.float64)
    num_segments = max(len(bits), 1)
    precision = self._num_both / max(self._num_starts, 1)
    recall = self._num_both / max(self._num_words, 1)
    return {
      'ids_per_segment': self._num_ids / num_segments,
      'bytes_per_segment': num_bytes / num_segments,
      **{
        f'segment_bits_p{p}': float(np.percentile(bits, p))
        for p in _PERCENTILES
      },
      'segments_over_capacity_fraction': float(
        np.mean(bits > self._capacity_bits)
      ),
      'code_capacity_bits': self._capacity_bits,
      'live_code_fraction': self._codes.live_fraction(),
      'codebook_perplexity': self._codes.perplexity(),
      'overflow_fraction': self._num_short_ids / max(self._num_ids, 1),
      'word_start_precision': precision,
      'word_start_recall': recall,
      'word_start_f1': 2 * precision * recall / max(precision + recall, 1e-9),
    }


def word_starts(ids_BS: np.ndarray, is_first_BS: np.ndarray) -> np.ndarray:
  """Returns which bytes begin a word.

  A word is a run of ASCII letters, digits, underscores and bytes of characters
  that are not ASCII. The first byte of a document begins a word if it is such a
  byte.

  Args:
    ids_BS: Bytes and special ids, [..., S] int.
    is_first_BS: True for the first ids of documents, [..., S] bool.

  Returns:
    The mask, [..., S] bool.
  """
  table = np.zeros(ids_BS.max(initial=255) + 1, bool)
  for byte in range(256):
    table[byte] = byte >= 0x80 or chr(byte).isalnum() or byte == ord('_')
  is_word_BS = table[ids_BS]
  before_BS = np.roll(is_word_BS, 1, axis=-1) & ~is_first_BS
  before_BS[..., 0] = False
  return is_word_BS & ~before_BS


class Histogram(NamedTuple):
  """Counts of K bins.

  Attributes:
    counts: Number of values in each bin, [K].
    edges: Edges of the bins, ascending, [K + 1]; None if bin k holds the
      integer k.
  """

  counts: np.ndarray
  edges: np.ndarray | None = None


class SegmentHistograms:
  """Histograms of the entropies of ids and the lengths of segments by level."""

  def __init__(self, configs: tuple[LevelConfig, ...]):
    """Starts without rows of the levels, bottom first."""
    self._entropies: list[list[np.ndarray]] = [[] for _ in configs]
    self._lengths = [
      np.zeros(c.segmentation.max_length + 1, np.int64) for c in configs
    ]

  def add(self, levels: tuple[CodedLevel, ...]) -> None:
    """Adds rows of all levels, on the host."""
    for level, entropies, lengths in zip(
      levels, self._entropies, self._lengths, strict=True
    ):
      index_BS = np.asarray(level.index_BS)
      entropies.append(np.asarray(level.entropy_bits_BS)[index_BS >= 0])
      length_P = codes_lib.segment_lengths(index_BS)
      lengths += np.bincount(length_P, minlength=len(lengths))

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
