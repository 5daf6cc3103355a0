"""One row of segments made by hand, and vectors of their codes."""

import jax.numpy as jnp
import numpy as np

from abstractinator.types import EOS_ID, NUM_BYTES, PAD_ID, Segments

SIZE = 36
# Three documents of three, one, and four segments, then padding.
LENGTHS = ((5, 2, 6), (4,), (1, 6, 3, 3))
SLOTS = 11


def make_row():
  """Returns ids, documents and segments of the row; no model is involved."""
  document = np.full(SIZE, -1, np.int32)
  index = np.full(SIZE, -1, np.int32)
  offset = np.zeros(SIZE, np.int32)
  position = slot = 0
  for number, lengths in enumerate(LENGTHS):
    for length in lengths:
      here = slice(position, position + length)
      document[here], index[here] = number, slot
      offset[here] = np.arange(length)
      position, slot = position + length, slot + 1
  is_start = (index >= 0) & (offset == 0)
  is_end = (index >= 0) & (index != np.append(index[1:], -1))
  ids = np.random.default_rng(0).integers(0, NUM_BYTES, SIZE)
  ids = np.where(index >= 0, ids, PAD_ID)
  for number in range(len(LENGTHS)):
    ids[np.nonzero(document == number)[0][-1]] = EOS_ID
  segments = Segments(
    index_BS=index,
    is_start_BS=is_start,
    is_end_BS=is_end,
    offset_BS=offset,
    count_B=np.int32(slot),
    is_capacity_bound_BS=np.zeros(SIZE, bool),
  )
  return ids.astype(np.int32), document, segments


def rows(x, count):
  """Returns `count` equal rows."""
  return jnp.repeat(jnp.asarray(x)[None], count, axis=0)


def num_codes(level):
  """Returns the number of codes of the row, U."""
  return SLOTS * level.config.pooling.num_queries


def make_memory(level, seed=3):
  """Returns random vectors of the codes of the row, [U, D]."""
  rng = np.random.default_rng(seed)
  shape = (num_codes(level), level.config.d_model)
  return rng.normal(size=shape).astype(np.float32)
