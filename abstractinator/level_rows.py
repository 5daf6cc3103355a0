"""Texts and codes as rows of a trained level, in batches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from abstractinator import codes as codes_lib
from abstractinator import level_programs
from abstractinator.codes import Codes
from abstractinator.config import RunConfig
from abstractinator.modules.pyramid_output import DecodedRows
from abstractinator.training.model import make_model
from abstractinator.training.trained import fingerprint
from abstractinator.types import PyTree

# Ids of the largest batch; bounds memory whatever the length of a text.
_BATCH_IDS = 8192


class LevelRows:
  """What the functions of a trained level share.

  Attributes:
    config: Of the run.
  """

  def __init__(self, config: RunConfig, variables: PyTree):
    """Compiles nothing yet.

    Args:
      config: Of the run.
      variables: `params` and the collections.
    """
    self.config = config
    self._model = make_model(config, jax.default_backend())
    self._variables = variables

  def fingerprint(self) -> str:
    """Tells one model from another; see `training.trained`."""
    return fingerprint(self.config, self._variables)

  def _rows(self, texts: Sequence[bytes]):
    """Ids and documents of all rows, and how many rows each text has."""
    size = self.config.data.sequence_length
    rows = [codes_lib.rows(data, size) for data in texts]
    ids_BS, document_BS = (np.concatenate(x) for x in zip(*rows, strict=True))
    return ids_BS, document_BS, [len(ids) for ids, _ in rows]

  def _require_division_of_decoding(self, is_short_BS: np.ndarray) -> None:
    """Refuses a division that `EntropyEnds` would not find again."""
    # Of the first level: above it, a head says the ends.
    level = self.config.model.levels[0]
    num_rows = int(is_short_BS.any(axis=1).sum())
    if level.expander.ends == 'entropy' and num_rows:
      length = level.segmentation.capacity_length
      raise ValueError(
        f'model.levels[0].segmentation.capacity_length: got {length}, with'
        f' which {num_rows} rows of the text ran short of slots, so that'
        " decoding with ends='entropy' would divide them otherwise; allowed:"
        ' fewer ids a slot (1 is enough for every text), or texts of fewer'
        ' segments'
      )

  def _decode(self, codes: Codes) -> DecodedRows:
    number = self.level_number(codes.level)
    level = self.config.model.levels[number]
    codes_BU, is_valid_BP = codes_lib.to_slots(
      codes,
      level.quantizer.num_codes,
      self._num_slots(number),
      level.pooling.num_queries,
    )
    decode = functools.partial(
      level_programs.decode,
      number=number,
      sequence_length=self.config.data.sequence_length,
    )
    return self._in_batches(decode, codes_BU, is_valid_BP)

  def level_number(self, level: int | None) -> int:
    """Of a level, the top one if None."""
    count = len(self.config.model.levels)
    if level is None:
      return count - 1
    if not 0 <= level < count:
      raise ValueError(f'level: got {level}, allowed: 0 to {count - 1}')
    return level

  def _queries(self, number: int) -> int:
    return self.config.model.levels[number].pooling.num_queries

  def _from_slots(self, codes_BU, count_B, number) -> Codes:
    num_slots = self._num_slots(number)
    return codes_lib.from_slots(codes_BU, count_B, num_slots, number)

  def _num_slots(self, number: int) -> int:
    """Of a row of a level."""
    model = self.config.model
    sizes = model.sequence_lengths(self.config.data.sequence_length)
    return model.levels[number].segmentation.num_slots(sizes[number])

  def _in_batches(self, function: Callable[..., Any], *rows: np.ndarray) -> Any:
    """Calls a function on rows; few sizes of batches, so few compilations."""
    size = self.config.data.sequence_length
    largest = 1 << max((_BATCH_IDS // size).bit_length() - 1, 0)
    outputs = []
    for start in range(0, len(rows[0]), largest):
      part = [x[start : start + largest] for x in rows]
      count = len(part[0])
      missing = (1 << (count - 1).bit_length()) - count
      padded = [
        np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode='edge')
        for x in part
      ]
      output = jax.device_get(function(self._model, self._variables, *padded))
      outputs.append(jax.tree.map(lambda x, n=count: x[:n], output))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
