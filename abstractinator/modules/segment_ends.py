"""What says where segments end while ids are decoded one at a time.

Each class of `ENDS` has a state, an argument of its functions and their first
result:

  start(level, batch_size, capacity)
  opens(level, state, before_B, document_B, active_B): whether the next id opens
    a segment, [B] bool, given the id before it or BOS, and its own document.
    Rows that are not active stay as they are and get no answer. First ids of
    documents always open one, whatever is said of them.
  after(level, state, decoded, codebooks): once the id is known.
"""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.modules.entropy_model import EntropyCache
from abstractinator.modules.entropy_output import predictive_entropy_bits
from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops import sampling, segmentation_stream
from abstractinator.ops.segmentation_stream import SegmenterState
from abstractinator.types import Array, Special


@flax.struct.dataclass
class Decoded:
  """An id of each row, just decoded.

  Attributes:
    x_BD: [B, D], the state that it was predicted from.
    ids_B: [B] int32, the id.
    offset_B: [B] int32, its position within its segment.
  """

  x_BD: Array
  ids_B: Array
  offset_B: Array


class HeadEnds:
  """The head of the expander; the state is whether the last id was an end."""

  @staticmethod
  def start(level: nn.Module, batch_size: int, capacity: int) -> Array:
    """Nothing was decoded yet."""
    return jnp.ones((batch_size,), bool)

  @staticmethod
  def opens(
    level: nn.Module,
    is_end_B: Array,
    before_B: Array,
    document_B: Array,
    active_B: Array,
  ) -> tuple[Array, Array]:
    """After an end."""
    return is_end_B, is_end_B

  @staticmethod
  def after(
    level: nn.Module,
    is_end_B: Array,
    decoded: Decoded,
    codebooks: Codebooks | None,
  ) -> Array:
    """Asks the head."""
    return level.expander.is_end(
      decoded.x_BD, decoded.ids_B, decoded.offset_B, codebooks
    )


@flax.struct.dataclass
class EntropyState:
  """What the entropy model knows.

  Attributes:
    cache: Of the entropy model.
    segmenter: Of the rule.
    logits_BV: [B, V] float32, its prediction of the last id.
    surprisal_bits_B: [B] float32, what the last id cost under that.
  """

  cache: EntropyCache
  segmenter: SegmenterState
  logits_BV: Array
  surprisal_bits_B: Array


class EntropyEnds:
  """The entropy model, run over the ids decoded so far.

  It divides them as the compressor would divide the same ids, slots apart: they
  may run short there, see `segmentation.segment`.
  """

  @staticmethod
  def start(level: nn.Module, batch_size: int, capacity: int) -> EntropyState:
    """Nothing was decoded yet."""
    vocab = level.num_ids + len(Special)
    return EntropyState(
      cache=level.compressor.entropy_model.init_cache(
        batch_size, capacity, level.dtype
      ),
      segmenter=segmentation_stream.initial_state(batch_size),
      logits_BV=jnp.zeros((batch_size, vocab), jnp.float32),
      surprisal_bits_B=jnp.zeros((batch_size,), jnp.float32),
    )

  @staticmethod
  def opens(
    level: nn.Module,
    state: EntropyState,
    before_B: Array,
    document_B: Array,
    active_B: Array,
  ) -> tuple[EntropyState, Array]:
    """Predicts the next id, and asks the rule."""
    predicted, cache = level.compressor.entropy_model.step(
      before_B, document_B, state.cache, active_B
    )
    segmenter, opens_B = segmentation_stream.step(
      state.segmenter,
      level.compressor.segmentation_policy(),
      entropy_bits_B=predictive_entropy_bits(
        predicted, level.config.entropy_heads
      ),
      document_B=jnp.where(active_B, document_B, -1),
      last_id_B=before_B,
      last_surprisal_bits_B=state.surprisal_bits_B,
    )
    logits_BV = jnp.where(active_B[:, None], predicted.logits, state.logits_BV)
    state = EntropyState(cache, segmenter, logits_BV, state.surprisal_bits_B)
    return state, opens_B

  @staticmethod
  def after(
    level: nn.Module,
    state: EntropyState,
    decoded: Decoded,
    codebooks: Codebooks | None,
  ) -> EntropyState:
    """Notes what the id cost."""
    return state.replace(
      surprisal_bits_B=sampling.surprisal_bits(state.logits_BV, decoded.ids_B)
    )


ENDS = {'head': HeadEnds, 'entropy': EntropyEnds}
