"""A trained level, for use on bytes."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from abstractinator import codes as codes_lib
from abstractinator import level_programs
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.codes import Codes
from abstractinator.generation import texts
from abstractinator.generation.options import Options
from abstractinator.inspection import Inspection, flatten, inspection
from abstractinator.level_rows import LevelRows
from abstractinator.reconstruction import Reconstruction, reconstructions
from abstractinator.training.objective import OBJECTIVES
from abstractinator.training.trained import read_trained


def load(workdir: str, step: int | None = None) -> 'TrainedLevel':
  """Opens the level that a run has trained.

  Args:
    workdir: The directory of the run.
    step: Which checkpoint, the latest by default.

  Returns:
    The level, on the default device.

  Raises:
    ValueError: If there is no such checkpoint, it is damaged, or it is one of
      an entropy model alone.
  """
  config, variables = read_trained(workdir, step)
  if not OBJECTIVES[config.objective].has_codes:
    got = f'objective: got {config.objective!r}'
    raise ValueError(f"{workdir}: {got}, allowed: 'all', which has codes")
  return TrainedLevel(config, variables)


class TrainedLevel(LevelRows):
  """Turns bytes into segments and codes, and codes into bytes.

  A text is any bytes, at least one; as in training EOS comes after its last
  byte, in a segment like any other id. It is cut into rows of
  `data.sequence_length` ids, each encoded as a document of its own.

  Attributes:
    config: Of the run, as `read_trained` gives it.
  """

  def segment(self, data: bytes) -> list[bytes]:
    """Divides a text as the rule of the first level says.

    Args:
      data: The text.

    Returns:
      Its segments, none empty; joined they are `data`.

    Raises:
      ValueError: If there are no bytes.
    """
    compress = functools.partial(level_programs.compress, number=0)
    segments, *_ = self._in_batches(compress, *self._rows([data])[:2])
    # A segment of EOS alone starts behind the text.
    starts = np.flatnonzero(segments.is_start_BS.reshape(-1)[: len(data)])
    return [
      data[start:stop]
      for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)
    ]

  def encode(self, data: bytes, level: int | None = None) -> Codes:
    """Turns a text into codes, `pooling.num_queries` a segment.

    Args:
      data: The text.
      level: Whose codes, counted from 0; the top level by default.

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
    """Encodes texts, whose rows go in batches together; see `encode`."""
    number = self.level_number(level)
    if not texts:
      return []
    ids_BS, document_BS, num_rows_T = self._rows(texts)
    compress = functools.partial(level_programs.compress, number=number)
    segments, count_B, codes_BU = self._in_batches(
      compress, ids_BS, document_BS
    )
    self._require_division_of_decoding(segments.is_capacity_bound_BS)
    codes = self._from_slots(codes_BU, count_B, number)
    return codes_lib.split(codes, num_rows_T, self._queries(number))

  def decode(self, codes: Codes) -> bytes:
    """Turns codes into a text, greedily; see `Abstractinator.decode`.

    A segment ends where the level says so, at EOS at the latest, which adds no
    byte. EOS in the wrong place cuts its own segment short, not the text. A
    wrong byte spoils its own segment, and those after it only as far as they
    see it: not at all where segments decode all at once.

    Args:
      codes: As from `encode`.

    Returns:
      The text. No codes, no bytes.

    Raises:
      ValueError: If a code is not in the codebook, there is no such level, or
        the counts do not fit.
    """
    return self.decode_all([codes])[0]

  def decode_all(self, codes: Sequence[Codes]) -> list[bytes]:
    """Decodes texts, whose rows go in batches together; see `decode`.

    Raises:
      ValueError: Also if they are of different levels.
    """
    num_rows_T = [len(x.count_B) for x in codes]
    if not sum(num_rows_T):
      return [b''] * len(codes)
    return level_programs.texts(self._decode(codes_lib.join(codes)), num_rows_T)

  def reconstruct(self, data: bytes) -> Reconstruction:
    """Encodes a text, decodes it from its codes alone, and compares.

    Args:
      data: The text.

    Returns:
      What came back, and how much of it is right; errors as of `encode`.
    """
    return self.reconstruct_all([data])[0]

  def reconstruct_all(self, texts: Sequence[bytes]) -> list[Reconstruction]:
    """Texts, whose rows go in batches together; see `reconstruct`."""
    if not texts:
      return []
    ids_BS, document_BS, num_rows_T = self._rows(texts)
    segments, count_B, codes_BU, predicted_BS, top_BS = self._in_batches(
      level_programs.predict, ids_BS, document_BS
    )
    self._require_division_of_decoding(segments.is_capacity_bound_BS)
    number = self.level_number(None)
    decoded = self._decode(self._from_slots(codes_BU, count_B, number))
    right_B, total_B = self._in_batches(
      level_programs.count_right,
      decoded.ids_BPL,
      decoded.length_BP,
      decoded.rows.origin_BP,
      ids_BS,
      top_BS,
      np.arange(self._num_slots(number)) < count_B[:, None],
    )
    forced_B = np.sum((predicted_BS == ids_BS) & (ids_BS < NUM_BYTES), axis=1)
    return reconstructions(
      texts,
      level_programs.texts(decoded, num_rows_T),
      num_rows_T,
      right_B=right_B,
      total_B=total_B,
      forced_B=forced_B,
      num_segments_B=segments.count_B,
    )

  def inspect(self, data: bytes) -> Inspection:
    """Encodes a text, decodes it, and keeps all that there is to see of it.

    Args:
      data: The text.

    Returns:
      Segments, codes and costs of all levels, and what came back; errors as of
      `encode`.
    """
    rows = self._rows([data])[:2]
    levels, expander_bits, count_B, forced_BS, top_BS, top_bits_BU = (
      self._in_batches(level_programs.inspect, *rows)
    )
    self._require_division_of_decoding(levels[0].is_short_BS)
    top = levels[-1]
    decoded = self._decode(
      self._from_slots(top.codes_BU, count_B, len(levels) - 1)
    )
    return inspection(
      data,
      [
        flatten(level, bits_BS, self._queries(number))
        for number, (level, bits_BS) in enumerate(
          zip(levels, expander_bits, strict=True)
        )
      ],
      top_BS=top_BS,
      num_tops_B=count_B,
      forced_BS=forced_BS,
      decoded=(decoded.ids_BPL, decoded.length_BP, decoded.rows.origin_BP),
      top_code_bits_N=None
      if top_bits_BU is None
      else top_bits_BU[top.is_code_BU],
    )

  def generate(
    self, prompts: bytes | Sequence[bytes], **options: Any
  ) -> list[list[bytes]]:
    """Continues texts.

    A text is compressed to codes, the top LM goes on with those until the end
    of the document, and levels turn them into bytes. Without a top LM the codes
    of the last top segment, as far as it is there, are those of every segment
    that follows: a text in the manner of the last code.

    Where a stack has no window, the last `data.sequence_length` bytes of a
    longer prompt are read, with a warning.

    Args:
      prompts: One or several, of any bytes and lengths.
      **options: Fields of `generation.options.Options`.

    Returns:
      For each prompt its samples: new bytes, without the prompt.

    Raises:
      ValueError: If an option is out of its range, or a prompt is empty and
        there is no top LM.
    """
    if isinstance(prompts, bytes):
      prompts = [prompts]
    return texts.generate(*self._generates(), prompts, *self._how(options))

  def stream(
    self, prompt: bytes, *, splits_characters: bool = False, **options: Any
  ) -> Iterator[bytes]:
    """Continues a text as `generate` does, once.

    Args:
      prompt: Any bytes.
      splits_characters: Whether what is yielded may end within a character of
        UTF-8.
      **options: Fields of `generation.options.Options`.

    Yields:
      New bytes as they come; joined they are what `generate` returns.

    Raises:
      ValueError: If several samples are asked for.
    """
    if options.get('num_samples', 1) != 1:
      raise ValueError(
        f'num_samples: got {options["num_samples"]}, allowed: 1 to stream'
      )
    yield from texts.stream(
      *self._generates(),
      prompt,
      *self._how(options),
      splits_characters=splits_characters,
    )

  def _generates(self):
    return self._model, self._variables

  def _how(self, options):
    options = Options(**options)
    context = texts.context_bytes(
      self.config.model,
      self.config.data.sequence_length,
      entropy_model_only=options.entropy_model_only,
    )
    return options, context
