"""A trained level, for use on bytes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from abstractinator import codes as codes_lib
from abstractinator import level_programs
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.codes import Codes
from abstractinator.config import RunConfig
from abstractinator.evaluation.reconstruction import free_running_counts
from abstractinator.generation import texts
from abstractinator.generation.options import Options
from abstractinator.modules.pyramid_output import DecodedRows
from abstractinator.reconstruction import Reconstruction
from abstractinator.training import checkpoint
from abstractinator.training.model import make_model
from abstractinator.training.state import abstract_state
from abstractinator.types import PyTree, Segments

# Ids of the largest batch; bounds memory whatever the length of a text.
_BATCH_IDS = 8192


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
  config = RunConfig.from_dict(checkpoint.read_config(workdir, step))
  if config.objective != 'all':
    got = f'objective: got {config.objective!r}'
    raise ValueError(f"{workdir}: {got}, allowed: 'all', which has codes")
  model = make_model(config, jax.default_backend())
  state = abstract_state(model, config.data.sequence_length)
  fields = {'params': state.params, 'collections': state.collections}
  fields = checkpoint.restore_variables(workdir, fields, step)
  variables = {'params': fields['params'], **fields['collections']}
  return TrainedLevel(config, variables)


class TrainedLevel:
  """Turns bytes into segments and codes, and codes into bytes.

  A text is any bytes, at least one; as in training EOS comes after its last
  byte, in a segment like any other id. It is cut into rows of
  `data.sequence_length` ids, each encoded as a document of its own.

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
    segments, *_ = self._in_batches(compress, *self._rows(data))
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
    number = self._number(level)
    compress = functools.partial(level_programs.compress, number=number)
    segments, count_B, codes_BU = self._in_batches(compress, *self._rows(data))
    self._require_division_of_decoding(segments)
    return codes_lib.from_slots(
      codes_BU, count_B, self._num_slots(number), number
    )

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
    if not len(codes.count_B):
      return b''
    return level_programs.text(self._decode(codes))

  def reconstruct(self, data: bytes) -> Reconstruction:
    """Encodes a text, decodes it from its codes alone, and compares.

    Args:
      data: The text.

    Returns:
      What came back, and how much of it is right; errors as of `encode`.
    """
    ids_BS, document_BS = self._rows(data)
    segments, count_B, codes_BU, predicted_BS, top_BS = self._in_batches(
      level_programs.predict, ids_BS, document_BS
    )
    self._require_division_of_decoding(segments)
    number = self._number(None)
    num_slots = self._num_slots(number)
    codes = codes_lib.from_slots(codes_BU, count_B, num_slots, number)
    num_segments = int(segments.count_B.sum())
    decoded = self._decode(codes)
    num_right, num_total = jax.jit(free_running_counts)(
      decoded.ids_BPL,
      decoded.length_BP,
      decoded.rows.origin_BP,
      ids_BS,
      top_BS,
      np.arange(num_slots) < count_B[:, None],
    )
    is_right_BS = (predicted_BS == ids_BS) & (ids_BS < NUM_BYTES)
    text = level_programs.text(decoded)
    return Reconstruction(
      text=text,
      byte_accuracy=float(num_right) / float(num_total),
      teacher_forced_byte_accuracy=float(np.sum(is_right_BS)) / len(data),
      num_segments=num_segments,
      bytes_per_segment=len(data) / num_segments,
      exact=text == data,
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
    """
    yield from texts.stream(
      *self._generates(),
      prompt,
      *self._how(options),
      splits_characters=splits_characters,
    )

  def _generates(self):
    return self._model, self._variables

  def _how(self, options):
    context = texts.context_bytes(
      self.config.model, self.config.data.sequence_length
    )
    return Options(**options), context

  def _rows(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    return codes_lib.rows(data, self.config.data.sequence_length)

  def _require_division_of_decoding(self, segments: Segments) -> None:
    """Refuses segments that `EntropyEnds` would not find again."""
    # Of the first level: above it, a head says the ends.
    level = self.config.model.levels[0]
    num_rows = int(segments.is_capacity_bound_BS.any(axis=1).sum())
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
    number = self._number(codes.level)
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

  def _number(self, level: int | None) -> int:
    """Of a level, the top one if None."""
    count = len(self.config.model.levels)
    if level is None:
      return count - 1
    if not 0 <= level < count:
      raise ValueError(f'level: got {level}, allowed: 0 to {count - 1}')
    return level

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
      padded = [np.pad(x, ((0, missing), (0, 0)), mode='edge') for x in part]
      output = jax.device_get(function(self._model, self._variables, *padded))
      outputs.append(jax.tree.map(lambda x, n=count: x[:n], output))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
