"""Clocks: how long a call takes, how fast the machine multiplies and copies."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Bytes of what is copied: too many for any cache.
_COPIED_BYTES = {'cpu': 1 << 28, 'gpu': 1 << 30, 'tpu': 1 << 30}
# Large enough to be as fast as it gets, small enough to be quick.
_SIZES = {'cpu': (1024, 1536, 2048), 'gpu': (4096, 8192), 'tpu': (4096, 8192)}


# Calls that follow each other where a device takes them from a queue: to launch
# one takes as long as to run a short one.
_QUEUED = {'cpu': 1, 'gpu': 16, 'tpu': 16}


def seconds(
  function: Callable[[], Any], repeats: int, queued: int = 1
) -> list[float]:
  """Times calls until their results are there.

  Args:
    function: What to call; already compiled.
    repeats: How often.
    queued: Calls that follow each other, in order, before one waits.

  Returns:
    The duration of each call, or of one of those that follow each other.
  """
  durations = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(queued):
      result = function()
    jax.block_until_ready(result)
    durations.append((time.perf_counter() - start) / queued)
  return durations


def queued_seconds(function: Callable[[], Any]) -> float:
  """Times a call among as many as keep the device busy."""
  return seconds(function, 1, _QUEUED[jax.default_backend()])[0]


def matmul_rate(dtype: jnp.dtype, repeats: int = 3) -> float:
  """Measures how fast this device multiplies square matrices.

  Args:
    dtype: Of the matrices.
    repeats: Products of each size.

  Returns:
    Floating point operations per second of the fastest product.

  Raises:
    KeyError: If the platform is not 'cpu', 'gpu' or 'tpu'.
  """
  best = 0.0
  for size in _SIZES[jax.default_backend()]:
    product, x = _product(size, dtype)
    call = functools.partial(product, x)
    durations = [queued_seconds(call) for _ in range(repeats)]
    best = max(best, 2 * size**3 / min(durations))
  return best


def copy_rate(repeats: int = 3) -> float:
  """Measures how fast this device copies memory.

  Args:
    repeats: Copies.

  Returns:
    Bytes read and written per second by the fastest copy.

  Raises:
    KeyError: If the platform is not 'cpu', 'gpu' or 'tpu'.
  """
  copy, x = _copy(_COPIED_BYTES[jax.default_backend()])
  durations = [queued_seconds(lambda: copy(x)) for _ in range(repeats)]
  return 2 * x.nbytes / min(durations)


@functools.cache
def _copy(num_bytes: int) -> tuple[Callable[..., Any], Any]:
  """A compiled copy, less one bit, and what to call it with."""
  x = jnp.zeros(num_bytes // 4, jnp.int32)
  copy = jax.jit(jnp.bitwise_not).lower(x).compile()
  jax.block_until_ready(copy(x))
  return copy, x


@functools.cache
def _product(size: int, dtype: jnp.dtype) -> tuple[Callable[..., Any], Any]:
  """A compiled product and what to call it with."""
  x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  jax.block_until_ready(product(x, x))
  return functools.partial(product, x), x
