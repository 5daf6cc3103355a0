"""The entropy model of a run, one byte of each lane at a time."""

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.config import RunConfig
from abstractinator.modules.entropy_model import EntropyCache, EntropyModel
from abstractinator.ops.implementation import resolve_implementations
from abstractinator.types import Array, PyTree

# Frequencies of the 256 bytes add up to 2 to the power of it.
PRECISION_BITS = 20


class ByteModel:
  """Frequencies of the next byte of each lane, exact integers.

  Whoever writes and whoever reads calls the same compiled function on the same
  shapes in the same order, so that both see the same floats, and then the same
  integers. Another machine or another version of jax may round differently:
  then decoding fails a checksum.

  Attributes:
    fingerprint: 16 bytes that tell one model from another.
    reset_interval: After how many bytes a lane starts anew, as a document does;
      None if the model looks back over a window and never has to.
  """

  def __init__(self, config: RunConfig, variables: PyTree):
    """Compiles nothing yet.

    Args:
      config: Of the run.
      variables: `params` and the collections of it.
    """
    level = config.model.levels[0]
    params = variables['params']
    params = params.get('level_0', params)['compressor']['entropy_model']
    self._variables = {'params': jax.device_put(params)}
    self._dtype = jnp.dtype(config.model.dtype)
    self._model = EntropyModel(
      level.entropy_model,
      level.entropy_heads,
      level.d_model,
      NUM_BYTES,
      resolve_implementations(
        **config.model.implementation.to_dict(), platform=jax.default_backend()
      ),
      self._dtype,
    )
    self.fingerprint = _fingerprint(config, params)
    has_window = level.entropy_model.window is not None
    self.reset_interval = None if has_window else config.data.sequence_length

  def start(self, num_lanes: int) -> EntropyCache:
    """The state before the first byte of each lane."""
    return self._model.apply(
      self._variables,
      num_lanes,
      self.reset_interval or 0,
      self._dtype,
      method='init_cache',
    )

  def step(
    self, last_B: np.ndarray, cache: EntropyCache
  ) -> tuple[Array, EntropyCache]:
    """Frequencies of the next byte.

    Args:
      last_B: [B] int32, the byte before of each lane; anything at the start.
      cache: From `start` or the step before; it is used up.

    Returns:
      [B, 256] int32, at least 1 each, and the state.
    """
    return _step(self._model, self._variables, jnp.asarray(last_B), cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(model, variables, last_B, cache):
  predicted, cache = model.apply(
    variables,
    last_B,
    jnp.zeros_like(last_B),
    cache,
    jnp.ones(last_B.shape, bool),
    method='step',
  )
  return frequencies(predicted.logits[:, :NUM_BYTES]), cache


def frequencies(logits_BV: Array) -> Array:
  """Probabilities as integers.

  Args:
    logits_BV: [B, V] float32.

  Returns:
    [B, V] int32, at least 1 each; they add up to 2^PRECISION_BITS. What
    rounding leaves goes to the likeliest.
  """
  total, size = 1 << PRECISION_BITS, logits_BV.shape[-1]
  p_BV = jax.nn.softmax(logits_BV, axis=-1)
  found_BV = 1 + jnp.floor(p_BV * (total - size)).astype(jnp.int32)
  rest_B = total - jnp.sum(found_BV, axis=-1)
  best_B = jnp.argmax(found_BV, axis=-1)
  return found_BV.at[jnp.arange(len(found_BV)), best_B].add(rest_B)


def _fingerprint(config: RunConfig, params: PyTree) -> bytes:
  level = config.model.levels[0]
  digest = hashlib.sha256()
  # What decides how the parameters are used.
  settings = [
    dataclasses.asdict(level.entropy_model),
    dataclasses.asdict(level.entropy_heads),
    level.d_model,
    config.model.dtype,
    config.data.sequence_length,
  ]
  digest.update(json.dumps(settings, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    leaf = np.asarray(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    digest.update(f'{name} {leaf.dtype} {leaf.shape}\n'.encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.digest()[:16]
