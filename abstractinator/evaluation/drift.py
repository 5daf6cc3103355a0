"""Whether segments grow along a document that says the same over and over.

A model that has read a text before finds nothing uncertain in it, and a rule
that cuts by entropy stops cutting.
"""

import numpy as np

from abstractinator import types
from abstractinator.data.documents import Documents
from abstractinator.evaluation.coded_rows import slots_of_bytes
from abstractinator.evaluation.evaluate import Figures
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.objective.by_level import ByLevel

_NUM_TEXTS = 8
_PERIOD_BYTES = 64
_LENGTH = 8192


def drift_figures(
  evaluator: Evaluator,
  documents: Documents,
  *,
  period: int = _PERIOD_BYTES,
  length: int = _LENGTH,
) -> Figures:
  """Lengths of segments in the last quarter of a repetitive text.

  Args:
    evaluator: Of a run with codes.
    documents: Of up to eight of them the first bytes are repeated.
    period: Bytes that repeat; documents that have fewer are left out.
    length: Bytes of each text, coded as one row.

  Returns:
    After the prefix of each level `drift_ratio`: mean bytes of a segment in
    the last quarter over those in the first, 1 without drift.

  Raises:
    ValueError: If no document is long enough.
  """
  texts = []
  for index in range(documents.num_documents):
    if documents.lengths[index] >= period and len(texts) < _NUM_TEXTS:
      ids = types.bytes_to_ids(documents.read(index, 0, period))[:period]
      texts.append(np.resize(ids, length))
  if not texts:
    raise ValueError(
      f'data: has no document of {period} bytes, allowed: at least one for'
      ' --drift'
    )
  queries = tuple(c.pooling.num_queries for c in evaluator.config.model.levels)
  starts: list[list[np.ndarray]] = [[] for _ in queries]
  for ids_N in texts:
    levels = evaluator.levels_of_long(ids_N)
    for level, slot_BS in enumerate(slots_of_bytes(levels, queries)):
      starts[level].append(np.diff(slot_BS[0], prepend=-1) > 0)
  quarter = length // 4
  found: list[Figures] = []
  for of_level in starts:
    is_start_TN = np.stack(of_level)
    first = is_start_TN[:, :quarter].sum()
    last = is_start_TN[:, -quarter:].sum()
    found.append({'drift_ratio': float(first / max(last, 1))})
  return ByLevel(tuple(found)).flattened()
