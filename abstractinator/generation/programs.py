"""What is compiled to continue rows: two programs, one for each bucket."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.generation.options import Options
from abstractinator.modules.generation import entropy, pyramid
from abstractinator.modules.generation.request import Request
from abstractinator.ops.draw import Filters
from abstractinator.types import PyTree

# Segments of the top level, or bytes of the entropy model, of a call. More of
# them are fewer calls, and more that nobody asked for at the end.
SLOTS = 16
_BYTES = 64
_SMALLEST = 64


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Sizes that programs are compiled for.

  Attributes:
    rows: B, a power of two.
    size: Bytes of the longest prompt, a power of two.
    capacity: Those and the new ones, a power of two.
    entropy_model_only: See `Options`.
  """

  rows: int
  size: int
  capacity: int
  entropy_model_only: bool


def bucket_of(num_rows: int, longest: int, options: Options) -> Bucket:
  """The smallest that fits.

  Args:
    num_rows: At least 1.
    longest: Bytes of the longest prompt.
    options: Give the new bytes.

  Returns:
    The bucket.
  """
  return Bucket(
    rows=_power(num_rows),
    size=max(_power(longest), _SMALLEST),
    capacity=max(_power(longest + options.max_new_bytes), _SMALLEST),
    entropy_model_only=options.entropy_model_only,
  )


def request_of(options: Options, sample_B: np.ndarray) -> Request:
  """The rows' request, of rows with these numbers of samples."""
  size = len(sample_B)
  level_temperature = options.level_temperature
  if level_temperature is None:
    level_temperature = options.temperature

  def filters(temperature):
    return Filters(
      temperature_B=np.full(size, temperature, np.float32),
      top_k_B=np.full(size, options.top_k, np.int32),
      top_p_B=np.full(size, options.top_p, np.float32),
      min_p_B=np.full(size, options.min_p, np.float32),
    )

  key = jax.random.key(options.seed)
  return Request(
    key_B=jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.asarray(sample_B)),
    top=filters(options.temperature),
    levels=filters(level_temperature),
    limit_B=np.full(size, options.max_new_bytes, np.int32),
  )


@functools.partial(jax.jit, static_argnames=('model', 'bucket'))
def start(
  variables: PyTree,
  ids_BS: jax.Array,
  count_B: jax.Array,
  request: Request,
  *,
  model: Any,
  bucket: Bucket,
) -> PyTree:
  """The state after prompts; see `modules.generation`."""
  if bucket.entropy_model_only:
    method = functools.partial(entropy.start, capacity=bucket.capacity)
  else:
    method = functools.partial(
      pyramid.start, capacity=bucket.capacity, num_slots=SLOTS
    )
  return model.apply(
    variables, ids_BS, count_B, request, method=lambda m, *x: method(m, *x)
  )


@functools.partial(
  jax.jit, static_argnames=('model', 'entropy_model_only'), donate_argnums=1
)
def extend(
  variables: PyTree,
  state: PyTree,
  stopped_B: jax.Array,
  *,
  model: Any,
  entropy_model_only: bool,
) -> tuple[jax.Array, jax.Array, PyTree]:
  """The next bytes of rows.

  Args:
    variables: Of the model.
    state: From `start` or the call before; not to be used again.
    stopped_B: [B] bool, rows that need not go on.
    model: A pyramid.
    entropy_model_only: See `Options`.

  Returns:
    [B, N] int32 bytes, [B] int32 how many of them there are, and the state.
  """
  if entropy_model_only:
    method = functools.partial(entropy.extend, num_bytes=_BYTES)
  else:
    method = functools.partial(pyramid.extend, num_slots=SLOTS)
  extension, state = model.apply(
    variables, state, stopped_B, method=lambda m, *x: method(m, *x)
  )
  return extension.bytes_BN, extension.count_B, state


def _power(count: int) -> int:
  """The smallest power of two that is not below."""
  return 1 << max(count - 1, 0).bit_length()
