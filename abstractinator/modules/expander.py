"""Codes back to ids, autoregressively within what a segment may see."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.config import LevelConfig
from abstractinator.modules import layers
from abstractinator.modules.blocks import FORMS, Block
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.segmentation import document_starts, first_slots
from abstractinator.types import Array, Segments, Special


@flax.struct.dataclass
class ExpanderOutput:
  """Teacher-forced predictions.

  Attributes:
    logits_BSV: [B, S, V] float32, of each id given the codes it sees and the
      ids before it in its context.
    end_logits_BS: [B, S] float32, log-odds that the id is its segment's last,
      given the same and the id itself.
    end_is_certain_BS: [B, S] bool, ids whose being last or not goes without
      saying: EOS, and the `max_length`-th of a segment.
  """

  logits_BSV: Array
  end_logits_BS: Array
  end_is_certain_BS: Array


class DecoderOnlyExpanderRVQ(nn.Module):
  """Predicts the ids of each segment from its code.

  Id s is fed the id before it and attends to the code or codes of its own
  segment, the first id of a segment included, and to those of `lookback`
  segments before. A head on the state and the id itself says whether the
  segment ends there.

  With `context='segment'` an id sees the ids of its own segment only, a segment
  starts from BOS, and all segments decode at once (`decode`). With 'window' it
  sees the last `window` ids.

  Attributes:
    config: Sizes of the level.
    num_ids: Ordinary ids; the specials come after them.
    implementation: Of the ops.
    dtype: Compute type.
  """

  config: LevelConfig
  num_ids: int
  implementation: str
  dtype: jnp.dtype

  def setup(self):
    c, width = self.config.expander, self.config.d_model
    max_length = self.config.segmentation.max_length
    vocab = self.num_ids + len(Special)
    self.embed = layers.embed(vocab, width, self.dtype)
    self.offset_embed = layers.embed(max_length, width, self.dtype)
    self.blocks = [
      Block(
        d_model=width,
        num_heads=c.num_heads,
        window=max_length - 1 if c.context == 'segment' else c.window,
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
    self.head = layers.logits(vocab, self.dtype)
    self.end_hidden = nn.Dense(width, use_bias=False, dtype=self.dtype)
    self.end_head = layers.logits(1, self.dtype)

  def __call__(
    self,
    ids_BS: Array,
    document_BS: Array,
    segments: Segments,
    memory_BUD: Array,
  ) -> ExpanderOutput:
    """Teacher-forced predictions for rows.

    Args:
      ids_BS: [B, S] int32, the ids to predict.
      document_BS: [B, S] int32, -1 on padding.
      segments: Their division.
      memory_BUD: [B, U, D], vectors of the codes.

    Returns:
      The predictions.
    """
    is_first_BS = document_starts(document_BS)
    lowest_BS = first_slots(segments, document_BS)
    alone = self.config.expander.context == 'segment'
    fed_BS = layers.shift_right(
      ids_BS,
      segments.is_start_BS if alone else is_first_BS,
      self.num_ids + Special.BOS,
    )
    x_BSD = self.embed(fed_BS) + self.offset_embed(segments.offset_BS)
    for block in self.blocks:
      x_BSD, _ = block(
        x_BSD,
        segments.index_BS if alone else document_BS,
        memory=(memory_BUD, segments.index_BS, lowest_BS),
      )
    x_BSD = self.norm(x_BSD)
    return ExpanderOutput(
      logits_BSV=self.head(x_BSD).astype(jnp.float32),
      end_logits_BS=self._end_logits(x_BSD, ids_BS),
      end_is_certain_BS=self._end_is_certain(ids_BS, segments.offset_BS),
    )

  def decode(self, memory_BUD: Array, lowest_BP: Array) -> tuple[Array, Array]:
    """Greedy ids of every segment, all at once, from the codes alone.

    Takes `max_length` steps, whatever the number of segments.

    Args:
      memory_BUD: [B, U, D], vectors of the codes.
      lowest_BP: [B, P] int32, first slot that each segment may see.

    Returns:
      [B, P, L] int32 ids and [B, P] int32 lengths, 1..L; ids past a segment's
      length are meaningless.

    Raises:
      ValueError: If the context is not 'segment'.
    """
    c = self.config.expander
    if c.context != 'segment':
      raise ValueError(
        f'expander.context: got {c.context!r}, allowed: segment, for segments'
        ' to decode independently'
      )
    batch, slots = lowest_BP.shape
    width = self.config.d_model
    max_length = self.config.segmentation.max_length
    lanes = batch * slots
    index_BP = jnp.broadcast_to(jnp.arange(slots), (batch, slots))
    cache = cache_lib.empty_cache(
      lanes,
      max_length,
      FORMS[c.attention.form].cached_widths(
        c.num_heads, width // c.num_heads, c.attention
      ),
      c.num_layers,
      self.dtype,
    )
    group_N = jnp.zeros(lanes, jnp.int32)
    active_N = jnp.ones(lanes, bool)

    def one_step(module, carry, number):
      cache, fed_N = carry
      cache, step = cache_lib.advance(cache, group_N, active_N)
      x_ND = module.embed(fed_N) + module.offset_embed(number)
      key_values = []
      for block, layer in zip(module.blocks, cache.layers, strict=True):
        x_ND, layer = block.step(
          x_ND, layer, step, memory=(memory_BUD, index_BP, lowest_BP)
        )
        key_values.append(layer)
      cache = cache.replace(layers=tuple(key_values))
      x_ND = module.norm(x_ND)
      # BOS and PAD are never anyone's next id.
      logits_NV = module.head(x_ND).astype(jnp.float32)
      logits_NV = logits_NV.at[:, module.num_ids + Special.BOS].set(-jnp.inf)
      logits_NV = logits_NV.at[:, module.num_ids + Special.PAD].set(-jnp.inf)
      ids_N = jnp.argmax(logits_NV, axis=-1).astype(jnp.int32)
      is_end_N = module._end_logits(x_ND, ids_N) > 0
      is_end_N |= module._end_is_certain(ids_N, number)
      return (cache, ids_N), (ids_N, is_end_N)

    fed_N = jnp.full((lanes,), self.num_ids + Special.BOS, jnp.int32)
    _, (ids_LN, is_end_LN) = nn.scan(
      one_step, variable_broadcast='params', split_rngs={'params': False}
    )(self, (cache, fed_N), jnp.arange(max_length, dtype=jnp.int32))
    length_N = 1 + jnp.argmax(is_end_LN, axis=0).astype(jnp.int32)
    return (
      ids_LN.T.reshape(batch, slots, max_length),
      length_N.reshape(batch, slots),
    )

  def _end_logits(self, x: Array, ids: Array) -> Array:
    both = jnp.concatenate([x, self.embed(ids)], axis=-1)
    hidden = nn.silu(self.end_hidden(both))
    return self.end_head(hidden)[..., 0].astype(jnp.float32)

  def _end_is_certain(self, ids: Array, offset: Array) -> Array:
    max_length = self.config.segmentation.max_length
    return (ids == self.num_ids + Special.EOS) | (offset == max_length - 1)
