"""Segments and codes of a level, counted on the host."""

import math

import numpy as np

from abstractinator.config import LevelConfig
from abstractinator.evaluation.unigram import CodeCounts

_PERCENTILES = (50, 95, 99)


class LevelStatistics:
  """What is known of the segments of a level after some rows of them.

  Attributes:
    codes: How often each code was used.
  """

  def __init__(self, config: LevelConfig):
    """Nothing was seen yet.

    Args:
      config: Of the level.
    """
    self._capacity_bits = config.pooling.num_queries * math.log2(
      config.quantizer.num_codes
    )
    self.codes = CodeCounts(config.quantizer.stage_sizes)
    self._segment_bits: list[np.ndarray] = []
    self._num_ids = self._num_short_ids = 0
    self._agreement = BoundaryAgreement()

  def add(
    self,
    index_BS: np.ndarray,
    bits_BS: np.ndarray,
    is_short_BS: np.ndarray,
    codes_N: np.ndarray,
  ) -> None:
    """Adds rows.

    Args:
      index_BS: [B, S] int, segment of each id; -1 on padding.
      bits_BS: [B, S] float32, what each id costs under the entropy model.
      is_short_BS: [B, S] bool, ids cut for want of slots.
      codes_N: [N] int, codes of the rows.
    """
    is_id_BS = index_BS >= 0
    self._num_ids += int(is_id_BS.sum())
    self._num_short_ids += int((is_short_BS & is_id_BS).sum())
    for index_S, bits_S, is_id_S in zip(
      index_BS, bits_BS, is_id_BS, strict=True
    ):
      total = np.bincount(index_S[is_id_S], weights=bits_S[is_id_S])
      self._segment_bits.append(total.astype(np.float32))
    self.codes.add(codes_N)

  def add_starts(
    self, is_start_N: np.ndarray, is_word_N: np.ndarray, is_asked_N: np.ndarray
  ) -> None:
    """Adds boundaries; see `BoundaryAgreement`."""
    self._agreement.add(is_start_N, is_word_N, is_asked_N)

  @property
  def num_segments(self) -> int:
    """Segments so far."""
    return sum(map(len, self._segment_bits))

  def summary(self, num_bytes: int) -> dict[str, float]:
    """Figures of the level.

    Args:
      num_bytes: Bytes that all of its segments stand for.

    Returns:
      See `evaluation.evaluate`.
    """
    bits = np.concatenate(self._segment_bits).astype(np.float64)
    num_segments = max(len(bits), 1)
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
      'live_code_fraction': self.codes.live_fraction(),
      'codebook_perplexity': self.codes.perplexity(),
      'overflow_fraction': self._num_short_ids / max(self._num_ids, 1),
      **self._agreement.summary(),
    }


class BoundaryAgreement:
  """How well the starts of segments are those of words."""

  def __init__(self):
    self._num_both = self._num_starts = self._num_words = 0

  def add(
    self, is_start_N: np.ndarray, is_word_N: np.ndarray, is_asked_N: np.ndarray
  ) -> None:
    """Adds bytes.

    Args:
      is_start_N: [N] bool, a segment starts there.
      is_word_N: [N] bool, a word does.
      is_asked_N: [N] bool, bytes that count: not those where every segment
        has to start.
    """
    self._num_both += int((is_start_N & is_word_N & is_asked_N).sum())
    self._num_starts += int((is_start_N & is_asked_N).sum())
    self._num_words += int((is_word_N & is_asked_N).sum())

  def summary(self) -> dict[str, float]:
    """Precision, recall and their harmonic mean; 0 where nothing starts."""
    precision = self._num_both / max(self._num_starts, 1)
    recall = self._num_both / max(self._num_words, 1)
    total = max(precision + recall, 1e-9)
    return {
      'word_start_precision': precision,
      'word_start_recall': recall,
      'word_start_f1': 2 * precision * recall / total,
    }


def word_starts(ids_BS: np.ndarray, is_first_BS: np.ndarray) -> np.ndarray:
  """Bytes that begin a word, [..., S] bool.

  A word is a run of ASCII letters, digits, underscores and bytes of other
  characters; a document begins one if its first byte is of a word.

  Args:
    ids_BS: [..., S] int, bytes and specials.
    is_first_BS: [..., S] bool, first ids of documents.

  Returns:
    The mask.
  """
  table = np.zeros(ids_BS.max(initial=255) + 1, bool)
  for byte in range(256):
    table[byte] = byte >= 0x80 or chr(byte).isalnum() or byte == ord('_')
  is_word_BS = table[ids_BS]
  before_BS = np.roll(is_word_BS, 1, axis=-1) & ~is_first_BS
  before_BS[..., 0] &= False
  return is_word_BS & ~before_BS
