"""Rows of several corpora, of which each has its share of every batch."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from abstractinator.data.packing import Rows


class MixedRows(Rows):
  """The rows of several corpora, one after the other, with their weights.

  Attributes:
    parts: Rows of each corpus.
    weights: Share of each corpus in the rows that are trained on; they add up
      to 1.
    ends: Number of rows in the corpora up to each one and including it.
  """

  def __init__(self, parts: Sequence[Rows], weights: Sequence[float]):
    """Reads nothing.

    Args:
      parts: Rows of each corpus, of one length and of the same vocabulary.
      weights: Weight of each corpus, above 0.
    """
    self.parts = tuple(parts)
    self.weights = tuple(weight / sum(weights) for weight in weights)
    self.ends = np.cumsum([len(part) for part in parts]).tolist()
    self.sequence_length = parts[0].sequence_length
    self.num_documents = sum(part.num_documents for part in parts)
    self.pad_id = parts[0].pad_id
    self.num_ids = sum(part.num_ids for part in parts)

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f'row {index} of {len(self)}')
    number = int(np.searchsorted(self.ends, index, side='right'))
    part = self.parts[number]
    row = part[index - self.ends[number] + len(part)]
    return row | {'row': np.array(index, np.int32)}

  def identity(self) -> dict[str, Any]:
    return {
      'weights': list(self.weights),
      'parts': [part.identity() for part in self.parts],
    }


def parse_mixture(text: str) -> list[tuple[float, str]]:
  """Parses the setting `data.train`: one corpus, or several with weights.

  Args:
    text: Globs, or WEIGHT:GLOBS;WEIGHT:GLOBS and so on.

  Returns:
    Weight and globs of each corpus.

  Raises:
    ValueError: If a weight is missing or not above 0.
  """
  if ';' not in text and not re.match(r'[\d.]+:.', text):
    return [(1.0, text)]
  found = []
  for part in text.split(';'):
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+):(.+)', part.strip())
    if not match or not float(match[1]):
      raise ValueError(
        f'data.train: got {part.strip()!r}, allowed: WEIGHT:GLOBS with a weight'
        " above 0, such as '0.7:texts/*.txt;0.3:code/*.py'"
      )
    found.append((float(match[1]), match[2]))
  return found
