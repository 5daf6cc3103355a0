"""Continuation of batches of prompts: the loop on the host.

Two programs are compiled, `start_program` and `extend_program`, each once per
number of prompts, longest prompt and total length, all rounded up to a power of
two.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.config import ModelConfig
from abstractinator.decoding import entropy_only, generate
from abstractinator.decoding.entropy_only import EntropyOnlyState
from abstractinator.decoding.growing_text import GrowingText
from abstractinator.decoding.options import Options
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.decoding.state import GenerationState, Request
from abstractinator.ops.sampling import Filters
from abstractinator.types import Array, PyTree

# Bytes of the shortest rows that programs are compiled for.
_SMALLEST = 64
# Bytes of the largest batch; bounds memory for any number of prompts.
_BATCH_BYTES = 1 << 16

State = GenerationState | EntropyOnlyState


def request_of(options: Options, sample_B: np.ndarray) -> Request:
  """Returns the request of rows.

  Args:
    options: Options of all rows.
    sample_B: Number of each row among the samples of its prompt, [B] int32.
  """
  size, key = len(sample_B), jax.random.key(options.seed)
  key_B = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.asarray(sample_B))

  def filters(temperature: float) -> Filters:
    return Filters(
      temperature_B=jnp.full(size, temperature, jnp.float32),
      top_k_B=jnp.full(size, options.top_k, jnp.int32),
      top_p_B=jnp.full(size, options.top_p, jnp.float32),
      min_p_B=jnp.full(size, options.min_p, jnp.float32),
    )

  level_temperature = options.level_temperature
  if level_temperature is None:
    level_temperature = options.temperature
  return Request(
    key_B=key_B,
    top=filters(options.temperature),
    levels=filters(level_temperature),
    limit_B=jnp.full(size, options.max_new_bytes, jnp.int32),
  )


def context_bytes(
  config: ModelConfig, sequence_length: int, *, entropy_model_only: bool
) -> int | None:
  """Returns how many bytes of a prompt are read, the last ones; None for all.

  A stack without a window was trained on rows of `sequence_length` ids and
  reads no more; stacks with a window read prompts of any length.

  Args:
    config: Config of the model.
    sequence_length: Ids of a row of training.
    entropy_model_only: Whether bytes are generated without codes.
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


def continue_texts(
  model: AbstractinatorPyramid,
  variables: PyTree,
  prompts: Sequence[bytes],
  options: Options,
  sequence_length: int,
) -> list[list[bytes]]:
  """Continues prompts.

  Args:
    model: A pyramid.
    variables: Its variables.
    prompts: Texts of any lengths.
    options: Sampling settings, limits and stop strings.
    sequence_length: Ids of a row of training; see `context_bytes`.

  Returns:
    The new bytes of each sample of each prompt.

  Raises:
    ValueError: If a prompt is empty and no top LM predicts its first code.
  """
  prompts = [_read(model, x, options, sequence_length) for x in prompts]
  rows = [(x, n) for x in prompts for n in range(options.num_samples)]
  texts: list[bytes] = []
  longest = max(map(len, prompts), default=0) + options.max_new_bytes
  size = max(_BATCH_BYTES // longest, 1)
  for begin in range(0, len(rows), size):
    part = rows[begin : begin + size]
    *_, growing = _grow(model, variables, part, options)
    texts += map(bytes, growing)
  return [
    texts[i : i + options.num_samples]
    for i in range(0, len(texts), options.num_samples)
  ]


def stream_text(
  model: AbstractinatorPyramid,
  variables: PyTree,
  prompt: bytes,
  options: Options,
  sequence_length: int,
  *,
  splits_characters: bool,
) -> Iterator[bytes]:
  """Continues one prompt once, as `continue_texts` does.

  Args:
    model: A pyramid.
    variables: Its variables.
    prompt: Any bytes.
    options: Sampling settings, limits and stop strings; one sample.
    sequence_length: Ids of a row of training; see `context_bytes`.
    splits_characters: Whether a part may end within a UTF-8 character.

  Yields:
    New bytes as they come, at least one each time.
  """
  rows = [(_read(model, prompt, options, sequence_length), 0)]
  for (text,) in _grow(model, variables, rows, options):
    if part := text.take(splits_characters=splits_characters):
      yield part


def _read(
  model: AbstractinatorPyramid,
  prompt: bytes,
  options: Options,
  sequence_length: int,
) -> bytes:
  """Returns the bytes of a prompt that are read."""
  has_first = model.config.top_lm is not None or options.entropy_model_only
  if not prompt and not has_first:
    raise ValueError(
      'prompt: got no bytes, allowed: at least 1 without a top_lm, which'
      ' predicts first codes'
    )
  context = context_bytes(
    model.config,
    sequence_length,
    entropy_model_only=options.entropy_model_only,
  )
  if context is not None and len(prompt) > context:
    warnings.warn(
      f'prompt: of its {len(prompt)} bytes the last {context} are read, as many'
      ' as a row of training has',
      stacklevel=4,
    )
    return prompt[-context:]
  return prompt


def _grow(
  model: AbstractinatorPyramid,
  variables: PyTree,
  rows: Sequence[tuple[bytes, int]],
  options: Options,
) -> Iterator[list[GrowingText]]:
  """Continues rows, each a prompt and its number among the samples.

  Yields:
    The texts of the rows after every call, until all have ended.
  """
  growing = [GrowingText(options.max_new_bytes, options.stop) for _ in rows]
  longest = max(len(prompt) for prompt, _ in rows)
  batch = _power_of_two(len(rows))
  ids_BS = np.zeros((batch, row_size(longest)), np.int32)
  count_B, sample_B = np.zeros((2, batch), np.int32)
  for row, (prompt, sample) in enumerate(rows):
    ids_BS[row, : len(prompt)] = np.frombuffer(prompt, np.uint8)
    count_B[row], sample_B[row] = len(prompt), sample
  state = start_program(
    variables,
    ids_BS,
    count_B,
    request_of(options, sample_B),
    model=model,
    capacity=row_size(longest + options.max_new_bytes),
    entropy_model_only=options.entropy_model_only,
  )
  stopped_B = np.arange(batch) >= len(rows)
  while not stopped_B.all():
    new, state = extend_program(variables, state, stopped_B, model=model)
    bytes_BN, new_B, is_done_B = jax.device_get((*new, state.is_done_B))
    for row, text in enumerate(growing):
      data = bytes_BN[row, : new_B[row]].astype(np.uint8).tobytes()
      text.add(data, is_last=bool(is_done_B[row]))
      stopped_B[row] = text.is_done
    yield growing


@functools.partial(
  jax.jit, static_argnames=('model', 'capacity', 'entropy_model_only')
)
def start_program(
  variables: PyTree,
  ids_BS: Array,
  count_B: Array,
  request: Request,
  *,
  model: AbstractinatorPyramid,
  capacity: int,
  entropy_model_only: bool,
) -> State:
  """Returns the state after prompts; see `generate.start` for the arguments."""
  method: Any = entropy_only.start if entropy_model_only else generate.start
  state: Any = model.apply(
    variables, ids_BS, count_B, request, capacity=capacity, method=method
  )
  return state


@functools.partial(jax.jit, static_argnames='model', donate_argnums=1)
def extend_program(
  variables: PyTree,
  state: State,
  stopped_B: Array,
  *,
  model: AbstractinatorPyramid,
) -> tuple[tuple[Array, Array], State]:
  """Decodes the next bytes of rows.

  Args:
    variables: Variables of the model.
    state: State of `start_program` or of the previous call; it is donated.
    stopped_B: Rows that need no more bytes, [B] bool.
    model: A pyramid.

  Returns:
    New bytes, [B, N] int32, and their number, [B] int32; and the state.
  """
  has_codes = isinstance(state, GenerationState)
  method: Any = generate.extend if has_codes else entropy_only.extend
  output: Any = model.apply(variables, state, stopped_B, method=method)
  bytes_BN, count_B, state = output
  return (bytes_BN, count_B), state


def row_size(longest: int) -> int:
  """Returns the bytes that rows of at most `longest` bytes are compiled for."""
  return max(_power_of_two(longest), _SMALLEST)


def _power_of_two(count: int) -> int:
  """Returns the smallest power of two that is at least `count`."""
  return 1 << max(count - 1, 0).bit_length()
