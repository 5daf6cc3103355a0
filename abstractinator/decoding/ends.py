"""Ends of segments as the entropy model of a level says them.

With `expander.ends='head'` a `Choice` says where segments end. With
'entropy' the entropy model runs over the ids decoded so far and divides them as
the compressor would divide the same ids. Slots are the one exception: they may
run short in the compressor, see `ops.segmentation.segment`.
"""

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.model.entropy_model import (
  EntropyCache,
  Prior,
  predictive_entropy_bits,
)
from abstractinator.model.level import Abstractinator
from abstractinator.ops import sampling, segmentation_stream
from abstractinator.ops.segmentation_stream import SegmenterState
from abstractinator.types import Array, Special


@flax.struct.dataclass
class EntropyEnds:
  """State of the entropy model and of the rule, one entry per row.

  Attributes:
    cache: KV cache of the entropy model.
    segmenter: State of the segmentation rule.
    prior: Prediction of the next id, [B].
  """

  cache: EntropyCache
  segmenter: SegmenterState
  prior: Prior


def no_prior(level: Abstractinator, batch_size: int) -> Prior:
  """Returns the prior of rows, [B], before anything is predicted."""
  vocab = level.num_ids + len(Special)
  return Prior(
    jnp.zeros((batch_size, level.config.d_model), level.dtype),
    jnp.zeros((batch_size, vocab), jnp.float32),
  )


def start(level: Abstractinator, batch_size: int, capacity: int) -> EntropyEnds:
  """Returns the state at the beginning of documents, BOS already read.

  Args:
    level: A bound level.
    batch_size: Rows, B.
    capacity: Ids that a row may come to.
  """
  state = EntropyEnds(
    cache=level.compressor.entropy_model.init_cache(
      batch_size, capacity, level.dtype
    ),
    segmenter=segmentation_stream.initial_state(batch_size),
    prior=no_prior(level, batch_size),
  )
  zero_B = jnp.zeros((batch_size,), jnp.int32)
  bos_B = zero_B + level.num_ids + Special.BOS
  return after(level, state, bos_B, bos_B, zero_B, zero_B == 0)[0]


def after(
  level: Abstractinator,
  state: EntropyEnds,
  ids_B: Array,
  fed_B: Array,
  document_B: Array,
  active_B: Array,
) -> tuple[EntropyEnds, Array]:
  """Reads decoded ids and asks the rule about the ids after them.

  Args:
    level: A bound level.
    state: State before the ids.
    ids_B: Decoded ids, [B] int32.
    fed_B: Ids that the entropy model is fed: the decoded ones, or BOS where the
      next id begins a document, [B] int32.
    document_B: Document of the next id, [B] int32.
    active_B: Rows to read; the others keep their state, [B] bool.

  Returns:
    The state, and whether the next id opens a segment, [B] bool; meaningless
    where rows are not active. The first id of a document always opens one,
    whatever is said here.
  """
  predicted, cache = level.compressor.entropy_model.step(
    fed_B, document_B, state.cache, active_B
  )
  segmenter, opens_B = segmentation_stream.step(
    state.segmenter,
    level.compressor.segmentation_policy(),
    entropy_bits_B=predictive_entropy_bits(
      predicted, level.config.entropy_heads
    ),
    document_B=jnp.where(active_B, document_B, -1),
    last_id_B=fed_B,
    last_surprisal_bits_B=sampling.surprisal_bits(state.prior.logits, ids_B),
  )
  prior = jax.tree.map(
    lambda new, old: jnp.where(active_B[:, None], new, old),
    Prior.of(predicted),
    state.prior,
  )
  return EntropyEnds(cache, segmenter, prior), opens_B
