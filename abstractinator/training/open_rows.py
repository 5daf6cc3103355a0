"""Rows of data that a run trains on: of texts, or of codes alone."""

import os
import zlib

import numpy as np

from abstractinator.codes import corpus
from abstractinator.config import RunConfig
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.data.packing import PackedRows
from abstractinator.data.pipeline import open_data, require_apart
from abstractinator.data.sources import split
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.load import fingerprint, read_trained


def open_rows(config: RunConfig) -> tuple[PackedRows, PackedRows]:
  """Opens the rows to train on and the rows to validate on.

  Args:
    config: Config of the run.

  Returns:
    Rows of texts, from `pipeline.open_data`; or rows of codes if the objective
    reads codes.

  Raises:
    ValueError: If data are missing, damaged or do not fit.
    OSError: If data cannot be read.
  """
  if OBJECTIVES[config.objective].reads_codes:
    return open_code_rows(config)
  max_documents = config.model.max_documents(config.data.sequence_length)
  return open_data(config.data, max_documents=max_documents)


def open_code_rows(config: RunConfig) -> tuple[PackedRows, PackedRows]:
  """Opens rows of codes that `abstractinator encode --data` wrote.

  Args:
    config: Config of the run. `data.train` and, if set, `data.validation` are
      directories of codes of the top level of `load_base_from`.

  Returns:
    Rows to train on and rows to validate on. A row has as many codes as a row
    of `data.sequence_length` bytes has slots for.

  Raises:
    ValueError: If codes are missing or damaged, or of another model or level.
    OSError: If codes cannot be read.
  """
  data = config.data
  if not config.load_base_from:
    raise ValueError(
      'load_base_from: got None, allowed: the run whose codes are learned'
    )
  model = fingerprint(*read_trained(config.load_base_from))
  train = _read(config, 'train', model)
  if data.validation:
    validation = _read(config, 'validation', model)
    require_apart([train], validation, data)
  else:
    train, validation = split(train, data.validation_fraction)
  train_rows, validation_rows = (
    PackedRows(
      [documents],
      sequence_length=config.model.num_top_codes(data.sequence_length),
      # No row ends early.
      max_documents=len(documents),
      has_eos=False,
    )
    for documents in (train, validation)
  )
  return train_rows, validation_rows


def _read(config: RunConfig, name: str, model: str) -> Documents:
  """Returns the texts in the directory `data.NAME`, each as an array of codes.

  The last code of a text has the number of codes added. So the end takes no
  place of its own, as for `CodeSequenceTransformer`.
  """
  directory = os.path.expanduser(getattr(config.data, name))
  levels = config.model.levels
  about = corpus.read_manifest(directory)
  for key, value in (('model', model), ('level', len(levels) - 1)):
    if about.get(key) != value:
      raise ValueError(
        f'data.{name}: got {directory}, codes of {key} {about.get(key)},'
        f' allowed: {value}, of load_base_from'
      )
  documents: list[MemoryDocument] = []
  for shard in corpus.read_corpus(directory):
    for codes in shard:
      codes_N = codes.codes_N.astype(np.int32)
      # The name tells data apart that has the same number of other codes.
      checksum = zlib.crc32(codes_N.tobytes())
      codes_N[-1] += levels[-1].quantizer.num_codes
      documents.append(MemoryDocument(f'{len(documents)}-{checksum}', codes_N))
  return Documents(documents)
