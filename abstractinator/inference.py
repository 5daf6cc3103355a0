"""A trained pyramid for use on bytes: segments, codes, texts, continuations."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from abstractinator.codes import codes as codes_lib
from abstractinator.codes.codes import Codes
from abstractinator.config import RunConfig
from abstractinator.decoding import continue_texts
from abstractinator.decoding.options import Options
from abstractinator.decoding.pyramid import make_model
from abstractinator.evaluation import row_programs
from abstractinator.evaluation.reconstruction import (
  Reconstruction,
  free_running_counts,
  reconstructions,
)
from abstractinator.model.pyramid import DecodedRows
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.load import fingerprint, open_source
from abstractinator.types import NUM_BYTES, Array, PyTree
from abstractinator.view.inspection import Inspection, flatten, inspection


def load(workdir: str, step: int | None = None) -> 'TrainedPyramid':
  """Opens the pyramid that a run has trained.

  Args:
    workdir: Directory of the run, or of a model that was exported from one; or
      `hf:NAME` for such a model on the Hugging Face Hub.
    step: Step of the checkpoint; the latest one by default.

  Returns:
    The pyramid, on the default device.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or the run
      trained an entropy model alone, which has no codes.
  """
  opened = open_source(workdir, step)
  objective = opened.config.objective
  if not OBJECTIVES[objective].has_codes:
    got = f'objective: got {objective!r}'
    raise ValueError(f"{workdir}: {got}, allowed: 'all', which has codes")
  return TrainedPyramid(
    opened.config, opened.all_variables(), workdir=workdir, step=opened.step
  )


class TrainedPyramid:
  """Turns bytes into segments and codes, and codes into bytes.

  A text is any bytes, at least one; as in training EOS follows its last byte
  and lies in a segment like any other id. A text is cut into rows of
  `data.sequence_length` ids, each encoded as a document of its own. Rows of
  several texts share batches.

  Attributes:
    config: Config of the run.
    workdir: Directory of the run; None for variables from elsewhere.
    step: Step of the checkpoint; None for variables from elsewhere.
    batch_ids: Ids of the largest batch; bounds memory for a text of any length.
  """

  batch_ids = 8192

  def __init__(
    self,
    config: RunConfig,
    variables: PyTree,
    *,
    workdir: str | None = None,
    step: int | None = None,
  ):
    """Wraps variables; programs are compiled at first use.

    Args:
      config: Config of the run.
      variables: Parameters and collections of its model.
      workdir: Directory of the run.
      step: Step of the checkpoint.
    """
    self.config, self.workdir, self.step = config, workdir, step
    self._model = make_model(config, jax.default_backend())
    self._variables = variables

  def __repr__(self) -> str:
    levels = [
      f'{level.segmentation.rule} -> {level.quantizer.kind} of'
      f' {level.quantizer.num_codes} codes'
      for level in self.config.model.levels
    ]
    top_lm = '' if self.config.model.top_lm is None else ', top LM'
    return (
      f'TrainedPyramid(workdir={self.workdir!r}, step={self.step}, levels='
      f'[{"; ".join(levels)}]{top_lm}, parameters={self.num_parameters:,})'
    )

  @property
  def num_parameters(self) -> int:
    """Number of trained parameters, without codebooks of moving averages."""
    return sum(x.size for x in jax.tree.leaves(self._variables['params']))

  def fingerprint(self) -> str:
    """Returns a sha256, in hex, of all that determines the codes of a text."""
    return fingerprint(self.config, self._variables)

  def level_number(self, level: int | None) -> int:
    """Returns the number of a level, the top one for None.

    Raises:
      ValueError: If there is no such level.
    """
    count = len(self.config.model.levels)
    if level is None:
      return count - 1
    if not 0 <= level < count:
      raise ValueError(f'level: got {level}, allowed: 0 to {count - 1}')
    return level

  def segment(self, data: bytes) -> list[bytes]:
    """Divides a text by the rule of the first level.

    Args:
      data: The text.

    Returns:
      Its segments, none empty; joined they are `data`.

    Raises:
      ValueError: If there are no bytes.
    """
    batches = self._text_batches([data])
    is_start_BS = self._joined(row_programs.segment_rows, batches)
    # A segment of EOS alone starts behind the text.
    starts = np.flatnonzero(is_start_BS.reshape(-1)[: len(data)])
    bounds = itertools.pairwise(np.append(starts, len(data)))
    return [data[start:stop] for start, stop in bounds]

  def encode(self, data: bytes, level: int | None = None) -> Codes:
    """Turns a text into codes, `pooling.num_queries` a segment.

    Args:
      data: The text.
      level: Number of the level, counted from 0; the top level by default.

    Returns:
      Its codes.

    Raises:
      ValueError: If there are no bytes or no such level, or with
        `ends='entropy'` if slots ran short: decoding divides as if they never
        did.
    """
    return self.encode_all([data], level)[0]

  def encode_all(
    self, texts: Sequence[bytes], level: int | None = None
  ) -> list[Codes]:
    """Encodes several texts as `encode` does one."""
    number = self.level_number(level)
    if not texts:
      return []
    encode = functools.partial(row_programs.encode_rows, number=number)
    parts, num_short = [], 0
    for count_B, codes_BU, is_short_B in self._each(
      encode, self._text_batches(texts)
    ):
      # Empty slots are left out at once: they may be most of a row.
      parts.append(self._from_slots(codes_BU, count_B, number))
      num_short += int(is_short_B.sum())
    self._require_reproducible(num_short)
    num_rows_T = self._num_rows(texts)
    return codes_lib.split(
      codes_lib.join(parts), num_rows_T, self._queries(number)
    )

  def decode(self, codes: Codes) -> bytes:
    """Turns codes into a text, greedily.

    A segment ends where the model says so, at EOS at the latest, which adds no
    byte. EOS in the wrong place cuts its own segment short, not the text. A
    wrong byte spoils its own segment, and later ones only as far as they
    attend to it: not at all where segments decode in parallel.

    Args:
      codes: Codes, as from `encode`.

    Returns:
      The text; no bytes for no codes.

    Raises:
      ValueError: If a code is not in the codebook, there is no such level, or
        the counts do not fit.
    """
    return self.decode_all([codes])[0]

  def decode_all(self, codes: Sequence[Codes]) -> list[bytes]:
    """Decodes the codes of several texts as `decode` does those of one.

    Raises:
      ValueError: As in `decode`, and if they are codes of different levels.
    """
    num_rows_T = [len(x.count_B) for x in codes]
    if not sum(num_rows_T):
      return [b''] * len(codes)
    return row_programs.texts_of(
      self._decode(codes_lib.join(codes)), num_rows_T
    )

  def reconstruct(self, data: bytes) -> Reconstruction:
    """Encodes a text, decodes it from its codes alone, and compares.

    Args:
      data: The text.

    Returns:
      The decoded text and how much of it is right.

    Raises:
      ValueError: If `encode` refuses the text.
    """
    return self.reconstruct_all([data])[0]

  def reconstruct_all(self, texts: Sequence[bytes]) -> list[Reconstruction]:
    """Reconstructs several texts as `reconstruct` does one."""
    if not texts:
      return []
    ids_BS, document_BS = self._rows(texts)
    count_B, codes_BU, is_short_B, num_segments_B, predicted_BS, top_BS = (
      self._in_batches(row_programs.predict_rows, ids_BS, document_BS)
    )
    self._require_reproducible(int(is_short_B.sum()))
    num_rows_T = self._num_rows(texts)
    number = self.level_number(None)
    decoded = self._decode(self._from_slots(codes_BU, count_B, number))
    right_B, total_B = free_running_counts(decoded, ids_BS, top_BS)
    forced_B = np.sum((predicted_BS == ids_BS) & (ids_BS < NUM_BYTES), axis=1)
    return reconstructions(
      texts,
      row_programs.texts_of(decoded, num_rows_T),
      num_rows_T,
      right_B=right_B,
      total_B=total_B,
      forced_B=forced_B,
      num_segments_B=num_segments_B,
      num_codes_B=count_B * self._queries(number),
    )

  def inspect(self, data: bytes) -> Inspection:
    """Encodes a text, decodes it, and keeps everything that `view` shows.

    Args:
      data: The text.

    Returns:
      Segments, codes and costs of all levels, and the decoded bytes.

    Raises:
      ValueError: If `encode` refuses the text.
    """
    ids_BS, document_BS = self._rows([data])
    levels, expander_bits, count_B, forced_BS, top_BS, top_bits_BU = (
      self._in_batches(row_programs.inspect_rows, ids_BS, document_BS)
    )
    is_short_B = levels[0].is_short_BS.any(axis=1)
    self._require_reproducible(int(is_short_B.sum()))
    top = levels[-1]
    decoded = self._decode(
      self._from_slots(top.codes_BU, count_B, len(levels) - 1)
    )
    top_bits_N = None if top_bits_BU is None else top_bits_BU[top.is_code_BU]
    return inspection(
      data,
      [
        flatten(level, bits_BS, self._queries(number))
        for number, (level, bits_BS) in enumerate(
          zip(levels, expander_bits, strict=True)
        )
      ],
      ids_BS=ids_BS,
      top_BS=top_BS,
      num_tops_B=count_B,
      forced_BS=forced_BS,
      decoded=decoded,
      top_code_bits_N=top_bits_N,
    )

  def generate(
    self, prompts: bytes | Sequence[bytes], **options: Any
  ) -> list[list[bytes]]:
    """Continues texts.

    Prompts are compressed to codes, the top LM continues those until the
    document ends, and levels turn them into bytes. Without a top LM the codes
    of the prompt's last top segment repeat for every segment that follows.

    If a stack has no window, the last `data.sequence_length` bytes of a longer
    prompt are read, with a warning.

    Args:
      prompts: One prompt or several, of any bytes and lengths.
      **options: Fields of `decoding.options.Options`.

    Returns:
      For each prompt its samples: new bytes, without the prompt.

    Raises:
      ValueError: If an option is out of its range, or a prompt is empty and
        there is no top LM.
    """
    if isinstance(prompts, bytes):
      prompts = [prompts]
    return continue_texts.continue_texts(
      self._model,
      self._variables,
      prompts,
      Options(**options),
      self.config.data.sequence_length,
    )

  def stream(
    self, prompt: bytes, *, splits_characters: bool = False, **options: Any
  ) -> Iterator[bytes]:
    """Continues one text as `generate` does, part by part.

    Args:
      prompt: Any bytes.
      splits_characters: Whether a part may end within a UTF-8 character.
      **options: Fields of `decoding.options.Options`.

    Yields:
      New bytes as they come; joined they are what `generate` returns.

    Raises:
      ValueError: If `generate` raises it, or several samples are asked for.
    """
    if options.get('num_samples', 1) != 1:
      raise ValueError(
        f'num_samples: got {options["num_samples"]}, allowed: 1 to stream'
      )
    yield from continue_texts.stream_text(
      self._model,
      self._variables,
      prompt,
      Options(**options),
      self.config.data.sequence_length,
      splits_characters=splits_characters,
    )

  def _num_rows(self, texts: Sequence[bytes]) -> list[int]:
    size = self.config.data.sequence_length
    return [codes_lib.num_rows(data, size) for data in texts]

  def _rows(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and documents of all rows."""
    return _stacked(list(self._text_batches(texts)))

  def _text_batches(
    self, texts: Sequence[bytes]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields ids and documents of the rows of texts, batch by batch."""
    size, largest = self.config.data.sequence_length, self._batch_rows
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for data, num_rows in zip(texts, self._num_rows(texts), strict=True):
      first = 0
      while first < num_rows:
        room = largest - sum(len(ids_BS) for ids_BS, _ in waiting)
        waiting.append(codes_lib.rows(data, size, first, room))
        first += room
        if room == len(waiting[-1][0]):
          yield _stacked(waiting)
          waiting = []
    if waiting:
      yield _stacked(waiting)

  @property
  def _batch_rows(self) -> int:
    """Rows of the largest batch, a power of two."""
    rows = self.batch_ids // self.config.data.sequence_length
    return 1 << max(rows.bit_length() - 1, 0)

  def _require_reproducible(self, num_rows: int) -> None:
    """Refuses divisions that decoding with ends='entropy' would not repeat.

    Args:
      num_rows: Number of rows of which the first level ran short of slots.

    Raises:
      ValueError: If there are such rows and `ends` is 'entropy'.
    """
    # Only the first level can have them: above it, a head says the ends.
    level = self.config.model.levels[0]
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
      row_programs.decode_codes,
      number=number,
      sequence_length=self.config.data.sequence_length,
    )
    return self._in_batches(decode, codes_BU, is_valid_BP)

  def _queries(self, number: int) -> int:
    return self.config.model.levels[number].pooling.num_queries

  def _from_slots(
    self, codes_BU: np.ndarray, count_B: np.ndarray, number: int
  ) -> Codes:
    num_slots = self._num_slots(number)
    return codes_lib.from_slots(codes_BU, count_B, num_slots, number)

  def _num_slots(self, number: int) -> int:
    """Returns the slots of a row of a level."""
    model = self.config.model
    sizes = model.sequence_lengths(self.config.data.sequence_length)
    return model.levels[number].segmentation.num_slots(sizes[number])

  def _in_batches(
    self, function: Callable[..., Any], *rows: np.ndarray | Array
  ) -> Any:
    """Calls a function on rows in batches.

    Args:
      function: Maps the model, its variables and rows to a tree of rows.
      *rows: Arrays of as many rows each.

    Returns:
      The tree of all rows, numpy.
    """
    largest = self._batch_rows
    starts = range(0, len(rows[0]), largest)
    return self._joined(
      function, (tuple(x[i : i + largest] for x in rows) for i in starts)
    )

  def _joined(
    self, function: Callable[..., Any], batches: Iterable[tuple[Any, ...]]
  ) -> Any:
    """Returns the tree of all rows that a function maps batches to, numpy."""
    outputs = list(self._each(function, batches))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

  def _each(
    self, function: Callable[..., Any], batches: Iterable[tuple[Any, ...]]
  ) -> Iterator[Any]:
    """Calls a function on batches, padded to few sizes to compile for.

    Yields:
      The tree of the rows of each batch, numpy.
    """
    for part in batches:
      count = len(part[0])
      missing = (1 << (count - 1).bit_length()) - count
      padded = [
        np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode='edge')
        for x in part
      ]
      output = jax.device_get(function(self._model, self._variables, *padded))
      # A part of an array would keep the whole.
      yield jax.tree.map(lambda x, n=count: x[:n].copy(), output)


def _stacked(
  parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  """Joins rows of several texts."""
  ids_BS, document_BS = (np.concatenate(x) for x in zip(*parts, strict=True))
  return ids_BS, document_BS
