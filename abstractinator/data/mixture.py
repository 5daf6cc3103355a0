"""Rows of several corpora, of which each has its share of every batch."""

import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from abstractinator.data.packing import PackedRows


class MixedRows:
  """The rows of several corpora, one after the other, with their weights.

  Attributes:
    parts: Rows of each corpus.
    weights: Shares of the rows that are trained on, as which they add up to 1.
    sequence_length: Ids of a row.
  """

  def __init__(self, parts: Sequence[PackedRows], weights: Sequence[float]):
    """Reads nothing.

    Args:
      parts: Rows of each corpus, of one length and of the same ids.
      weights: Above 0, one a corpus.
    """
    self.parts = tuple(parts)
    self.weights = tuple(weight / sum(weights) for weight in weights)
    self.sequence_length = parts[0].sequence_length
    # Where the rows of each corpus are over.
    self.ends = np.cumsum([len(part) for part in parts]).tolist()

  @property
  def num_documents(self) -> int:
    """How many documents there are."""
    return sum(part.num_documents for part in self.parts)

  @property
  def num_bytes(self) -> int:
    """How many bytes the documents have; EOS is not counted."""
    return sum(part.num_bytes for part in self.parts)

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Reads a row; see `PackedRows`. `row` counts those of all corpora."""
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    number = int(np.searchsorted(self.ends, index, side='right'))
    part = self.parts[number]
    row = part[index - self.ends[number] + len(part)]
    return row | {'row': np.int32(index)}

  def empty_row(self) -> dict[str, np.ndarray]:
    """Returns a row of padding."""
    return self.parts[0].empty_row()

  def fingerprint(self) -> dict[str, Any]:
    """Returns what a checkpoint notes of the rows, ready for JSON."""
    return {
      'weights': list(self.weights),
      'parts': [part.fingerprint() for part in self.parts],
    }


def parse_mixture(text: str) -> list[tuple[float, str]]:
  """Reads what `data.train` says: sources, or several of them with weights.

  Args:
    text: Globs, or WEIGHT:GLOBS;WEIGHT:GLOBS and so on.

  Returns:
    Weight and globs of each corpus.

  Raises:
    ValueError: If a weight is missing or not above 0.
  """
  weighted = r'([\d.]+):(.+)'
  if ';' not in text and not re.match(weighted, text):
    return [(1.0, text)]
  found = []
  for part in text.split(';'):
    match = re.fullmatch(weighted, part.strip())
    try:
      weight = float(match[1])
    except (TypeError, ValueError):
      weight = 0.0
    if not weight > 0:
      raise ValueError(
        f'data.train: got {part.strip()!r}, allowed: WEIGHT:GLOBS with a weight'
        " above 0, such as '0.7:texts/*.txt;0.3:code/*.py'"
      )
    found.append((weight, match[2]))
  return found
