"""Batches of prompts, continued."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from abstractinator.config import ModelConfig
from abstractinator.generation import programs
from abstractinator.generation.options import Options
from abstractinator.generation.text import GrowingText
from abstractinator.types import PyTree

# Bytes of the largest batch; bounds memory whatever the number of prompts.
_BATCH_BYTES = 1 << 16


def context_bytes(
  config: ModelConfig, sequence_length: int, *, entropy_model_only: bool
) -> int | None:
  """Bytes of a prompt that are read, the last ones; None for all.

  A stack without window has seen rows of `data.sequence_length` ids, and so
  reads no more; one with a window may read any number.
  """
  if entropy_model_only:
    is_full = config.levels[0].entropy_model.window is None
    return sequence_length if is_full else None
  stacks = [] if config.top_lm is None else [config.top_lm.stack]
  for level in config.levels:
    stacks += [level.entropy_model, level.encoder]
  is_full = any(stack.window is None for stack in stacks)
  is_full |= any(level.expander.context == 'full' for level in config.levels)
  return sequence_length if is_full else None


def generate(
  model: Any,
  variables: PyTree,
  prompts: Sequence[bytes],
  options: Options,
  context: int | None,
) -> list[list[bytes]]:
  """Continues prompts.

  Args:
    model: A pyramid.
    variables: Its variables.
    prompts: Of any lengths.
    options: How.
    context: See `context_bytes`.

  Returns:
    The new bytes of each sample of each prompt.

  Raises:
    ValueError: If a prompt is empty and there is no top LM to say the first
      code.
  """
  prompts = [_read(model, x, options, context) for x in prompts]
  rows = [(x, n) for x in prompts for n in range(options.num_samples)]
  texts: list[bytes] = []
  longest = max(map(len, prompts), default=0) + options.max_new_bytes
  size = max(_BATCH_BYTES // longest, 1)
  for begin in range(0, len(rows), size):
    growing = _begin(rows[begin : begin + size], options)
    for _ in _grow(
      model, variables, rows[begin : begin + size], growing, options
    ):
      pass
    texts += map(bytes, growing)
  return [
    texts[i : i + options.num_samples]
    for i in range(0, len(texts), options.num_samples)
  ]


def stream(
  model: Any,
  variables: PyTree,
  prompt: bytes,
  options: Options,
  context: int | None,
  *,
  splits_characters: bool,
) -> Iterator[bytes]:
  """Continues one prompt, once; see `generate`.

  Args:
    model: A pyramid.
    variables: Its variables.
    prompt: Any bytes.
    options: How; of samples there is one.
    context: See `context_bytes`.
    splits_characters: Whether a part may end within a character.

  Yields:
    New bytes as they come, at least one.
  """
  rows = [(_read(model, prompt, options, context), 0)]
  growing = _begin(rows, options)
  for _ in _grow(model, variables, rows, growing, options):
    if part := growing[0].take(splits_characters=splits_characters):
      yield part


def _read(
  model: Any, prompt: bytes, options: Options, context: int | None
) -> bytes:
  has_first = model.config.top_lm is not None or options.entropy_model_only
  if not prompt and not has_first:
    raise ValueError(
      'prompt: got no bytes, allowed: at least 1 without a top_lm, which'
      ' predicts first codes'
    )
  if context is not None and len(prompt) > context:
    warnings.warn(
      f'prompt: of its {len(prompt)} bytes the last {context} are read, as many'
      ' as a row of training has',
      stacklevel=4,
    )
    return prompt[-context:]
  return prompt


def _begin(rows, options):
  return [GrowingText(options.max_new_bytes, options.stop) for _ in rows]


def _grow(
  model: Any,
  variables: PyTree,
  rows: Sequence[tuple[bytes, int]],
  growing: Sequence[GrowingText],
  options: Options,
) -> Iterator[None]:
  """Adds to texts until all are done; yields after every addition."""
  prompts = [prompt for prompt, _ in rows]
  bucket = programs.bucket_of(len(rows), max(map(len, prompts)), options)
  ids_BS = np.zeros((bucket.rows, bucket.size), np.int32)
  count_B = np.zeros(bucket.rows, np.int32)
  sample_B = np.zeros(bucket.rows, np.int32)
  for row, (prompt, sample) in enumerate(rows):
    ids_BS[row, : len(prompt)] = np.frombuffer(prompt, np.uint8)
    count_B[row], sample_B[row] = len(prompt), sample
  request = programs.request_of(options, sample_B)
  state = programs.start(
    variables, ids_BS, count_B, request, model=model, bucket=bucket
  )
  stopped_B = np.arange(bucket.rows) >= len(rows)
  while not stopped_B.all():
    bytes_BN, new_B, state = programs.extend(
      variables,
      state,
      stopped_B,
      model=model,
      entropy_model_only=options.entropy_model_only,
    )
    bytes_BN, new_B, is_done_B = jax.device_get(
      (bytes_BN, new_B, state.is_done_B)
    )
    for row, text in enumerate(growing):
      data = bytes_BN[row, : new_B[row]].astype(np.uint8).tobytes()
      text.add(data, is_last=bool(is_done_B[row]))
      stopped_B[row] = text.is_done
    yield
