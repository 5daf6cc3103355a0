"""Transformer blocks and stacks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from abstractinator.config.attention import AttentionConfig, StackConfig
from abstractinator.modules import block_sequence, layers
from abstractinator.modules.attention import (
  RegularAttention,
  Remembered,
  output_init,
)
from abstractinator.modules.latent_attention import LatentAttention
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.cache import Cache, KeyValues, Step
from abstractinator.ops.implementation import Implementations
from abstractinator.types import Array

FORMS = {'regular': RegularAttention, 'mla': LatentAttention}


class SwiGLU(nn.Module):
  """Gated feed-forward layer.

  Attributes:
    hidden: F.
    depth: Layers of the stack, which scale down the initial output.
    dtype: Compute type.

  Parameters:
    gate_up/kernel: [D, 2, F].
    down/kernel: [F, D].

  Source: Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.
  """

  hidden: int
  depth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., D] to [..., D] of the compute type."""
    # One product for both: on CPU it is faster than two.
    both = nn.DenseGeneral(
      (2, self.hidden), use_bias=False, dtype=self.dtype, name='gate_up'
    )(x)
    return nn.Dense(
      x.shape[-1],
      use_bias=False,
      dtype=self.dtype,
      kernel_init=output_init(self.depth),
      name='down',
    )(_gated(both))


@jax.checkpoint
def _gated(both: Array) -> Array:
  """silu(gate) * up of [..., 2, F]; the backward pass keeps the input only."""
  gate, up = jnp.split(both, 2, axis=-2)
  return nn.silu(gate[..., 0, :]) * up[..., 0, :]


class Block(nn.Module):
  """Pre-norm block: self-attention, cross-attention if any, feed-forward.

  Attributes:
    d_model: D.
    num_heads: Heads of every attention.
    window: How many ids before itself an id sees, None for all.
    ffn_dim: Hidden width of the feed-forward layer.
    depth: Layers of the stack.
    form: Of every attention.
    implementation: Of the attention ops.
    dtype: Compute type.
    lookback: Of the cross-attention; None for a block without.
    rows_per_slot: Vectors of a segment in the memory of the cross-attention.
  """

  d_model: int
  num_heads: int
  window: int | None
  ffn_dim: int
  depth: int
  form: AttentionConfig
  implementation: Implementations
  dtype: jnp.dtype
  lookback: int | None = None
  rows_per_slot: int = 1

  def setup(self):
    def attention():
      return FORMS[self.form.form](
        d_model=self.d_model,
        num_heads=self.num_heads,
        head_dim=self.d_model // self.num_heads,
        depth=self.depth,
        config=self.form,
        implementation=self.implementation,
        dtype=self.dtype,
      )

    self.attention_norm = layers.RMSNorm(self.dtype)
    self.attention = attention()
    if self.lookback is not None:
      self.cross_norm = layers.RMSNorm(self.dtype)
      self.cross = attention()
    self.ffn_norm = layers.RMSNorm(self.dtype)
    self.ffn = SwiGLU(self.ffn_dim, self.depth, self.dtype)

  def __call__(
    self,
    x_BSD: Array,
    group_BS: Array,
    *,
    memory: tuple[Array, Array, Array] | None = None,
  ) -> tuple[Array, tuple[Array, Array]]:
    """One block.

    Args:
      x_BSD: [B, S, D] residual stream.
      group_BS: [B, S] int32, see `ops.attention`.
      memory: Vectors [B, U, D] to attend to, and the own and the lowest visible
        slot of each id, [B, S] int32; for a block with cross-attention.

    Returns:
      [B, S, D], and keys and values of the self-attention by position.
    """
    out, key_values = self.attention(
      self.attention_norm(x_BSD), group_BS, window=self.window
    )
    if self.lookback is not None:
      memory_BUD, *indices = memory
      memory = self.remember(memory_BUD), *indices
    return self._after_attention(x_BSD + out, memory), key_values

  def remember(self, memory_BUD: Array) -> Remembered:
    """What `step` reads of vectors [B, U, D], with cross-attention."""
    return self.cross.remember(
      memory_BUD, lookback=self.lookback, rows_per_slot=self.rows_per_slot
    )

  def step(
    self,
    x_BD: Array,
    layer: KeyValues,
    step: Step,
    *,
    memory: tuple[Remembered, Array, Array] | None = None,
  ) -> tuple[Array, KeyValues]:
    """The block for one id a row.

    Args:
      x_BD: [B, D] residual stream.
      layer: Keys and values by slot of a cache.
      step: From `ops.cache.advance`.
      memory: As of a call, with what `remember` made of the vectors. Its rows
        may be fewer, R x T = B: then it has the indices of T ids each, which
        are the rows of `x_BD` in order.

    Returns:
      [B, D], and `layer` with the step.
    """
    out, layer = self.attention.step(self.attention_norm(x_BD), layer, step)
    return self._after_attention(x_BD + out, memory), layer

  def _after_attention(self, x, memory):
    if self.lookback is not None:
      remembered, index_BT, lowest_BT = memory
      rows = x.reshape(*index_BT.shape, -1)
      if self.lookback > 0 or self.rows_per_slot > 1:
        rows = self.cross_norm(rows)
      out = self.cross.cross(
        rows,
        remembered,
        index_BT,
        lowest_BT,
        lookback=self.lookback,
        rows_per_slot=self.rows_per_slot,
      )
      x += out.reshape(x.shape)
    return x + self.ffn(self.ffn_norm(x))


class Stack(nn.Module):
  """Causal blocks, and a norm after the last.

  Attributes:
    config: Sizes.
    d_model: D.
    implementation: Of the attention ops.
    dtype: Compute type.
  """

  config: StackConfig
  d_model: int
  implementation: Implementations
  dtype: jnp.dtype

  def setup(self):
    c = self.config
    self.blocks = [
      Block(
        d_model=self.d_model,
        num_heads=c.num_heads,
        window=c.window,
        ffn_dim=c.ffn_dim,
        depth=c.num_layers,
        form=c.attention,
        implementation=self.implementation,
        dtype=self.dtype,
        name=f'block_{i}',
      )
      for i in range(c.num_layers)
    ]
    self.norm = layers.RMSNorm(self.dtype)

  def __call__(self, x_BSD: Array, group_BS: Array) -> Array:
    """[B, S, D] to [B, S, D]; ids of another group are never seen."""
    x_BSD, _ = block_sequence.forward(self.blocks, x_BSD, group_BS)
    return self.norm(x_BSD)

  @nn.nowrap
  def init_cache(
    self, batch_size: int, capacity: int, dtype: jnp.dtype
  ) -> Cache:
    """An empty cache for `prefill` and `step`; needs no parameters.

    Args:
      batch_size: B.
      capacity: Ids that a row of a stack without window may come to. One with
        a window forgets: it holds window + 1 ids and has no end.
      dtype: Of keys and values, usually the compute type.

    Returns:
      The cache.
    """
    c = self.config
    widths = FORMS[c.attention.form].cached_widths(
      c.num_heads, self.d_model // c.num_heads, c.attention
    )
    slots = capacity if c.window is None else c.window + 1
    return cache_lib.empty_cache(batch_size, slots, widths, c.num_layers, dtype)

  def prefill(
    self, x_BSD: Array, group_BS: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """The call, remembering every row for `step`.

    Args:
      x_BSD: [B, S, D].
      group_BS: [B, S] int32, -1 on padding, which only ends a row.
      cache: From `init_cache`; what else it held is gone.

    Returns:
      [B, S, D], and the cache, in which each row has as many ids as it has.

    Raises:
      ValueError: If there is no window and rows are longer than the cache.
    """
    x_BSD, cache = block_sequence.prefill(self.blocks, x_BSD, group_BS, cache)
    return self.norm(x_BSD), cache

  def step(
    self, x_BD: Array, group_B: Array, cache: Cache, active_B: Array
  ) -> tuple[Array, Cache]:
    """The next id of each row.

    Args:
      x_BD: [B, D].
      group_B: [B] int32, group of the id; it sees earlier ids of the same.
      cache: From `init_cache`, `prefill` or the step before.
      active_B: [B] bool, rows that have an id. Of the others the cache stays
        as it is and the output means nothing.

    Returns:
      [B, D], NaN for an id beyond the capacity of a stack without window, and
      the cache.
    """
    x_BD, cache = block_sequence.step(
      self.blocks, x_BD, group_B, cache, active_B
    )
    return self.norm(x_BD), cache
