"""Transformer blocks and stacks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from abstractinator.config import StackConfig
from abstractinator.modules import layers
from abstractinator.modules.attention import (
  LaneCache,
  SegmentCrossAttention,
  SelfAttention,
  output_init,
)
from abstractinator.types import Array


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
    num_heads: Heads of every attention.
    window: How many ids before itself an id sees.
    ffn_dim: Hidden width of the feed-forward layer.
    depth: Layers of the stack.
    implementation: Of the attention ops.
    dtype: Compute type.
    lookback: Of the cross-attention; None for a block without.
  """

  num_heads: int
  window: int
  ffn_dim: int
  depth: int
  implementation: str
  dtype: jnp.dtype
  lookback: int | None = None

  @nn.compact
  def __call__(
    self,
    x_BSD: Array,
    group_BS: Array | None,
    *,
    memory: tuple[Array, Array, Array] | None = None,
    cache: LaneCache | None = None,
    step: Array | None = None,
  ) -> tuple[Array, LaneCache | None]:
    """One block.

    Args:
      x_BSD: [B, S, D] residual stream.
      group_BS: [B, S] int32, see `ops.attention`.
      memory: Vectors [B, P, D] to attend to, and the own and the lowest visible
        slot of each id, [B, S] int32; for a block with cross-attention.
      cache: See `SelfAttention`; then x is [N, 1, D].
      step: See `SelfAttention`.

    Returns:
      [B, S, D], and the cache with this step.
    """
    common = dict(
      num_heads=self.num_heads,
      depth=self.depth,
      implementation=self.implementation,
      dtype=self.dtype,
    )
    normed = layers.RMSNorm(self.dtype, name='attention_norm')(x_BSD)
    out, cache = SelfAttention(window=self.window, name='attention', **common)(
      normed, group_BS, cache=cache, step=step
    )
    x_BSD += out
    if self.lookback is not None:
      memory_BPD, index_BS, lowest_BS = memory
      # Lanes of a cache are segments: bring them back to rows of slots.
      rows = x_BSD.reshape(*index_BS.shape, -1)
      if self.lookback > 0:
        rows = layers.RMSNorm(self.dtype, name='cross_norm')(rows)
      out = SegmentCrossAttention(
        lookback=self.lookback, name='cross', **common
      )(rows, memory_BPD, index_BS, lowest_BS)
      x_BSD += out.reshape(x_BSD.shape)
    normed = layers.RMSNorm(self.dtype, name='ffn_norm')(x_BSD)
    x_BSD += SwiGLU(self.ffn_dim, self.depth, self.dtype, name='ffn')(normed)
    return x_BSD, cache


class Stack(nn.Module):
  """Causal blocks over a sliding window, and a norm after the last.

  Attributes:
    config: Sizes.
    implementation: Of the attention ops.
    dtype: Compute type.
  """

  config: StackConfig
  implementation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BSD: Array, group_BS: Array) -> Array:
    """[B, S, D] to [B, S, D]; ids of another group are never seen."""
    c = self.config
    for i in range(c.num_layers):
      x_BSD, _ = Block(
        num_heads=c.num_heads,
        window=c.window,
        ffn_dim=c.ffn_dim,
        depth=c.num_layers,
        implementation=self.implementation,
        dtype=self.dtype,
        name=f'block_{i}',
      )(x_BSD, group_BS)
    return layers.RMSNorm(self.dtype, name='norm')(x_BSD)
