"""Compression under the entropy model of a run, one byte of each lane a step.

B are the lanes of a text, N bytes of it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.compression.coder import RangeCoder, logit_frequencies
from abstractinator.compression.container import ENTROPY_MODEL, TextLanes
from abstractinator.config import RunConfig
from abstractinator.decoding.pyramid import make_model
from abstractinator.model.entropy_model import EntropyCache, EntropyModel
from abstractinator.runs.load import fingerprint_of
from abstractinator.types import NUM_BYTES, Array, PyTree

_FORMAT_LANES = 65535
# Most bytes of the caches of all lanes; a damaged file may ask for any number.
_CACHE_BYTES = 1 << 29


class ByteModel:
  """Entropy model of the first level, as frequencies of the next byte.

  Encoder and decoder call the same compiled function on equal arrays in the
  same order, so that both compute the same floats, and thus the same
  frequencies. Another machine or version of jax may round differently: then the
  checksum of a block differs when it is decoded.

  Attributes:
    kind: ENTROPY_MODEL.
    max_lanes: Most lanes of a text: the file format has 16 bits for them, and
      their caches take 512 MiB at most.
    fingerprint: 16 bytes that tell one model from another.
    reset_interval: Bytes after which a lane starts anew, as a document does;
      None if the model has a window, and so a cache of fixed size.
  """

  kind = ENTROPY_MODEL

  def __init__(self, config: RunConfig, variables: PyTree) -> None:
    """Reads the entropy model; nothing is compiled yet.

    Args:
      config: Config of the run.
      variables: `params` and the collections of the whole model.
    """
    pyramid = make_model(config, jax.default_backend()).bind(variables)
    self._model, own = pyramid.levels[0].compressor.entropy_model.unbind()
    self._variables = jax.device_put(own)
    self._dtype = jnp.dtype(config.model.dtype)
    level = config.model.levels[0]
    # Settings that decide how the parameters are used.
    settings = [
      dataclasses.asdict(level.entropy_model),
      dataclasses.asdict(level.entropy_heads),
      level.d_model,
      config.model.dtype,
      config.data.sequence_length,
    ]
    self.fingerprint = fingerprint_of(settings, own['params'])[:16]
    has_window = self._model.config.window is not None
    self.reset_interval = None if has_window else config.data.sequence_length
    lane = jax.tree.leaves(jax.eval_shape(lambda: self.start(1)))
    lane_bytes = sum(x.size * x.dtype.itemsize for x in lane)
    self.max_lanes = min(_FORMAT_LANES, max(_CACHE_BYTES // lane_bytes, 1))

  def start(self, num_lanes: int) -> EntropyCache:
    """Returns the cache before the first byte of each lane."""
    model = self._model.bind(self._variables)
    return model.init_cache(num_lanes, self.reset_interval or 0, self._dtype)

  def step(
    self, last_B: np.ndarray, cache: EntropyCache
  ) -> tuple[Array, EntropyCache]:
    """Returns frequencies of the next bytes, [B, 256] int32, and a new cache.

    `last_B` are the bytes before them, [B] int32, ignored at the start of a
    lane. The buffers of `cache`, from `start` or the step before, are reused.
    """
    return _step(self._model, self._variables, jnp.asarray(last_B), cache)

  def block_coder(self, lanes: TextLanes) -> 'ByteBlockCoder':
    """Returns a coder of the blocks of a text."""
    return ByteBlockCoder(self, lanes)


class ByteBlockCoder:
  """Coder of the blocks of one text, which are given to it in order."""

  def __init__(self, model: ByteModel, lanes: TextLanes) -> None:
    self._model, self._lanes, self._step = model, lanes, 0
    self._last_B = np.zeros(lanes.num_lanes, np.int32)
    self._cache = model.start(lanes.num_lanes)

  def code(self, bytes_N: np.ndarray, coder: RangeCoder | None) -> np.ndarray:
    """Codes the next block.

    Args:
      bytes_N: Bytes of the block, step by step, [N] uint8; a decoder ignores
        their values.
      coder: Encoder or decoder; None for a raw block, which is context of the
        blocks after it.

    Returns:
      The bytes of the block, [N] uint8.
    """
    found_N, at, interval = bytes_N.copy(), 0, self._model.reset_interval
    while at < len(found_N):
      if self._step and interval is not None and self._step % interval == 0:
        self._cache = self._model.start(self._lanes.num_lanes)
      table_BV, self._cache = self._model.step(self._last_B, self._cache)
      count = self._lanes.num_active(self._step)
      part_B = found_N[at : at + count]
      if coder is not None:
        part_B[:] = coder.code(np.asarray(table_BV)[:count], part_B)
      missing = self._lanes.num_lanes - count
      self._last_B = np.pad(part_B.astype(np.int32), (0, missing))
      self._step, at = self._step + 1, at + count
    return found_N

  def forget(self) -> None:
    """Does nothing: a block that is stored raw is context all the same."""


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(
  model: EntropyModel, variables: PyTree, last_B: Array, cache: EntropyCache
) -> tuple[Array, EntropyCache]:
  document_B, active_B = jnp.zeros_like(last_B), jnp.ones(last_B.shape, bool)
  predicted, cache = model.bind(variables).step(
    last_B, document_B, cache, active_B
  )
  return logit_frequencies(predicted.logits[:, :NUM_BYTES]), cache
