"""Codes back to ids, autoregressively within what an id may see."""

import math

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.config import LevelConfig
from abstractinator.modules import block_sequence, layers
from abstractinator.modules.attention import Remembered
from abstractinator.modules.blocks import FORMS, Block
from abstractinator.modules.expander_output import ExpanderOutput
from abstractinator.modules.vocabulary import Codebooks, Vocabulary
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.cache import Cache
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation import document_starts, first_slots
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array, Segments, Special


class DecoderOnlyExpanderRVQ(nn.Module):
  """Predicts the ids of each segment from its code.

  Id s is fed the id before it and attends to the code or codes of its own
  segment, the first id of a segment included, and to those of `lookback`
  segments before. With `ends='head'` a head on the state and the id itself says
  whether the segment ends there.

  With `context='segment'` an id sees the ids of its own segment only, and a
  segment starts from BOS. With 'window' it sees the last `window` ids of its
  document, with 'full' all of them. `expander_lanes` decodes from codes alone.

  Attributes:
    config: Sizes of the level.
    sizes: Values of each digit of an ordinary id; the specials come after them.
    implementation: Of the ops.
    dtype: Compute type.
    has_tables: Whether the tables of the vocabulary are parameters; else every
      call takes them as `codebooks`.
    has_eos: Whether documents end with an id of their own.
  """

  config: LevelConfig
  sizes: tuple[int, ...]
  implementation: Implementations
  dtype: jnp.dtype
  has_tables: bool = True
  has_eos: bool = True

  @property
  def num_ids(self) -> int:
    """Ordinary ids."""
    return math.prod(self.sizes)

  @property
  def is_alone(self) -> bool:
    """Whether segments see no ids of each other."""
    return self.config.expander.context == 'segment'

  @property
  def window(self) -> int | None:
    """Ids before itself that an id may see; None for all."""
    return {
      'segment': self.config.segmentation.max_length - 1,
      'window': self.config.expander.window,
      'full': None,
    }[self.config.expander.context]

  def setup(self):
    c, width = self.config.expander, self.config.d_model
    self.vocabulary = Vocabulary(
      self.sizes,
      width,
      c.code_dim,
      c.distance,
      c.residual_conditioning,
      self.dtype,
      has_tables=self.has_tables,
      has_eos=self.has_eos,
    )
    self.offset_embed = layers.embed(
      self.config.segmentation.max_length, width, self.dtype
    )
    self.blocks = [
      Block(
        d_model=width,
        num_heads=c.num_heads,
        window=self.window,
        ffn_dim=c.ffn_dim,
        depth=c.num_layers,
        form=c.attention,
        implementation=self.implementation,
        dtype=self.dtype,
        lookback=c.lookback,
        rows_per_slot=self.config.pooling.num_queries,
        name=f'block_{i}',
      )
      for i in range(c.num_layers)
    ]
    self.norm = layers.RMSNorm(self.dtype)
    if c.ends == 'head':
      self.end_hidden = nn.Dense(width, use_bias=False, dtype=self.dtype)
      self.end_head = layers.logits(1, self.dtype)

  def __call__(
    self,
    ids_BS: Array,
    document_BS: Array,
    segments: Segments,
    memory_BUD: Array,
    hidden_BS: Array | None = None,
    codebooks: Codebooks | None = None,
  ) -> ExpanderOutput:
    """Teacher-forced predictions for rows.

    Args:
      ids_BS: [B, S] int32, the ids to predict.
      document_BS: [B, S] int32, -1 on padding.
      segments: Their division.
      memory_BUD: [B, U, D], vectors of the codes.
      hidden_BS: [B, S] bool, ids fed PAD, not the id before, unless it is BOS.
      codebooks: See `Vocabulary`.

    Returns:
      The predictions.
    """
    inputs = self._inputs(
      ids_BS, document_BS, segments, memory_BUD, hidden_BS, codebooks
    )
    x_BSD = self.norm(block_sequence.forward(self.blocks, *inputs)[0])
    predicted = self.vocabulary.predict(x_BSD, ids_BS, codebooks)
    return ExpanderOutput(
      logits=predicted.logits,
      nats_BS=self.vocabulary.nats(predicted, ids_BS),
      best_BS=predicted.best,
      end_logits_BS=self.end_logits(x_BSD, ids_BS, codebooks)
      if self.config.expander.ends == 'head'
      else None,
      end_is_certain_BS=self.end_is_certain(ids_BS, segments.offset_BS),
    )

  def prefill(
    self,
    ids_BS: Array,
    document_BS: Array,
    segments: Segments,
    memory_BUD: Array,
    cache: Cache,
    codebooks: Codebooks | None = None,
  ) -> tuple[Array, Cache]:
    """The states of the call, remembering every row for `step`.

    The first `step` after it is fed a row's last id.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32, -1 on padding, which only ends a row.
      segments: Their division.
      memory_BUD: [B, U, D], vectors of the codes.
      cache: From `init_cache`; what else it held is gone.
      codebooks: See `Vocabulary`.

    Returns:
      [B, S, D] normalised states that ids are predicted from, and the cache.

    Raises:
      ValueError: With context 'full' if rows are longer than the cache.
    """
    x_BSD, group_BS, seen = self._inputs(
      ids_BS, document_BS, segments, memory_BUD, None, codebooks
    )
    x_BSD, cache = block_sequence.prefill(
      self.blocks, x_BSD, group_BS, cache, seen
    )
    return self.norm(x_BSD), cache

  @nn.nowrap
  def init_cache(self, batch_size: int, capacity: int) -> Cache:
    """An empty cache for `prefill` and `step`; needs no parameters.

    Args:
      batch_size: B.
      capacity: Ids that a row may come to; read with context 'full' only.

    Returns:
      The cache.
    """
    c, width = self.config.expander, self.config.d_model
    return cache_lib.empty_cache(
      batch_size,
      capacity if self.window is None else self.window + 1,
      FORMS[c.attention.form].cached_widths(
        c.num_heads, width // c.num_heads, c.attention
      ),
      c.num_layers,
      self.dtype,
    )

  def remember(self, memory_BUD: Array) -> list[Remembered]:
    """What the blocks of `step` read of the vectors of codes, [B, U, D]."""
    return [block.remember(memory_BUD) for block in self.blocks]

  def step(
    self,
    fed_B: Array,
    offset_B: Array,
    group_B: Array,
    cache: Cache,
    active_B: Array,
    memory: block_sequence.StepMemory,
    codebooks: Codebooks | None = None,
  ) -> tuple[Array, Cache]:
    """The state that the next id of each row is predicted from.

    Args:
      fed_B: [B] int32, the id before it, or BOS.
      offset_B: [B] int32, its position within its segment.
      group_B: [B] int32, its segment where segments are alone, else its
        document.
      cache: From `init_cache`, `prefill` or the step before.
      active_B: [B] bool, rows that have a next id.
      memory: What `remember` made of the codes, and the slots of each row; see
        `Block.step`.
      codebooks: See `Vocabulary`.

    Returns:
      [B, D] normalised states, NaN beyond the capacity of the cache with
      context 'full', and the cache.
    """
    x_BD = self.vocabulary.embed(fed_B, codebooks) + self.offset_embed(offset_B)
    x_BD, cache = block_sequence.step(
      self.blocks, x_BD, group_B, cache, active_B, memory
    )
    return self.norm(x_BD), cache

  def greedy(self, x_BD: Array, codebooks: Codebooks | None = None) -> Array:
    """The likeliest ids of states, [B] int32, digit by digit."""
    return self.vocabulary.predict(x_BD, None, codebooks).best

  def is_end(
    self,
    x_BD: Array,
    ids_B: Array,
    offset_B: Array,
    codebooks: Codebooks | None = None,
  ) -> Array:
    """Whether ids end their segments as the head says, [B] bool."""
    is_likely = self.end_logits(x_BD, ids_B, codebooks) > 0
    return is_likely | self.end_is_certain(ids_B, offset_B)

  def end_logits(
    self, x: Array, ids: Array, codebooks: Codebooks | None = None
  ) -> Array:
    """See `ExpanderOutput`, of states and ids of any shape."""
    both = jnp.concatenate([x, self.vocabulary.embed(ids, codebooks)], axis=-1)
    hidden = nn.silu(self.end_hidden(by_rows(both)))
    return self.end_head(hidden)[..., 0].astype(jnp.float32)

  def end_is_certain(self, ids: Array, offset: Array) -> Array:
    """See `ExpanderOutput`, of ids of any shape."""
    max_length = self.config.segmentation.max_length
    return (ids == self.num_ids + Special.EOS) | (offset == max_length - 1)

  def _inputs(
    self, ids_BS, document_BS, segments, memory_BUD, hidden_BS, codebooks
  ) -> tuple[Array, Array, block_sequence.Memory]:
    """What blocks take: what is fed, who sees whom, and the codes.

    Ids of another group [B, S] are never seen; it is -1 on padding.
    """
    lowest_BS = first_slots(segments, document_BS)
    is_start_BS, group_BS = document_starts(document_BS), document_BS
    if self.is_alone:
      is_start_BS, group_BS = segments.is_start_BS, segments.index_BS
    fed_BS = layers.shift_right(ids_BS, is_start_BS, self.num_ids + Special.BOS)
    if hidden_BS is not None:
      fed_BS = jnp.where(
        hidden_BS & ~is_start_BS, self.num_ids + Special.PAD, fed_BS
      )
    x_BSD = self.vocabulary.embed(fed_BS, codebooks)
    x_BSD += self.offset_embed(segments.offset_BS)
    return x_BSD, group_BS, (memory_BUD, segments.index_BS, lowest_BS)
