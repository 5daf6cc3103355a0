"""Attention layers: projections around the ops."""

import functools

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.attention import attention
from abstractinator.ops.rope import rope_table, rotate
from abstractinator.ops.segment_cross import segment_cross_attention
from abstractinator.types import Array


@flax.struct.dataclass
class LaneCache:
  """Keys and values of sequences that advance together, one id a step.

  Attributes:
    key_NLHA: [N, L, H, A] rotated keys of the steps so far.
    value_NLHA: [N, L, H, A] values.
  """

  key_NLHA: Array
  value_NLHA: Array


class SelfAttention(nn.Module):
  """Multi-head causal self-attention over a sliding window.

  Attributes:
    num_heads: Heads; they divide the width.
    window: How many ids before itself an id sees.
    depth: Layers of the stack, which scale down the initial output.
    implementation: Of the op, see `ops.attention`.
    dtype: Compute type.

  Parameters:
    qkv/kernel: [D, 3, H, A].
    out/kernel: [H, A, D].
  """

  num_heads: int
  window: int
  depth: int
  implementation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x_BSD: Array,
    group_BS: Array | None,
    *,
    cache: LaneCache | None = None,
    step: Array | None = None,
  ) -> tuple[Array, LaneCache | None]:
    """Attends within groups, or one step of every lane of a cache.

    Args:
      x_BSD: [B, S, D], normalised. With a cache [N, 1, D].
      group_BS: [B, S] int32, see `ops.attention`. Unused with a cache.
      cache: Keys and values of earlier steps.
      step: [] int32, number of the step; with a cache only.

    Returns:
      [B, S, D] of the compute type, and the cache with this step.
    """
    width = x_BSD.shape[-1]
    head_dim = width // self.num_heads
    qkv = nn.DenseGeneral(
      (3, self.num_heads, head_dim),
      use_bias=False,
      dtype=self.dtype,
      name='qkv',
    )(x_BSD)
    q, k, v = (x[..., 0, :, :] for x in jnp.split(qkv, 3, axis=-3))
    position = jnp.arange(x_BSD.shape[1]) if step is None else step[None]
    table = rope_table(position, head_dim)
    q, k = rotate(q, table), rotate(k, table)
    if cache is None:
      out = attention(
        q,
        k,
        v,
        group_BS=group_BS,
        window=self.window,
        scale=head_dim**-0.5,
        implementation=self.implementation,
      )
    else:
      cache, out = self._extend(cache, q, k, v, step)
    out = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      use_bias=False,
      dtype=self.dtype,
      kernel_init=output_init(self.depth),
      name='out',
    )(out)
    return out, cache

  def _extend(self, cache, q, k, v, step):
    key = lax.dynamic_update_slice_in_dim(cache.key_NLHA, k, step, axis=1)
    value = lax.dynamic_update_slice_in_dim(cache.value_NLHA, v, step, axis=1)
    position = jnp.arange(key.shape[1])
    sees_L = (position <= step) & (position >= step - self.window)
    score = jnp.einsum(
      'nshd,nlhd->nhsl', q, key, preferred_element_type=jnp.float32
    )
    score = jnp.where(sees_L, score * q.shape[-1] ** -0.5, -jnp.inf)
    weight = nn.softmax(score, axis=-1).astype(value.dtype)
    out = jnp.einsum('nhsl,nlhd->nshd', weight, value)
    return LaneCache(key, value), out


class SegmentCrossAttention(nn.Module):
  """Attention from ids to the codes of their own and earlier segments.

  Positions are counted in segments on both sides, so that a score depends on
  the distance between segments alone.

  Attributes:
    num_heads: Heads; they divide the width.
    lookback: How many segments before its own an id sees. With 0 the output is
      a projection of the one visible code, and there is no query or key.
    depth: Layers of the stack, which scale down the initial output.
    implementation: Of the op, see `ops.segment_cross`.
    dtype: Compute type.

  Parameters:
    q/kernel, k/kernel: [D, H, A], with a lookback only.
    v/kernel: [D, H, A].
    out/kernel: [H, A, D].
  """

  num_heads: int
  lookback: int
  depth: int
  implementation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x_BTD: Array, memory_BPD: Array, index_BT: Array, lowest_BT: Array
  ) -> Array:
    """Attends to `memory_BPD`; see `ops.segment_cross` for the indices.

    Args:
      x_BTD: [B, T, D], normalised; not read with a lookback of 0.
      memory_BPD: [B, P, D], one vector a segment.
      index_BT: [B, T] int32, the segment of each id.
      lowest_BT: [B, T] int32, the first segment it may see.

    Returns:
      [B, T, D] of the compute type.
    """
    width = x_BTD.shape[-1]
    head_dim = width // self.num_heads

    project = functools.partial(
      nn.DenseGeneral,
      (self.num_heads, head_dim),
      use_bias=False,
      dtype=self.dtype,
    )
    v = project(name='v')(memory_BPD)
    q = k = None
    if self.lookback:
      slot_P = jnp.arange(memory_BPD.shape[1])
      q = rotate(project(name='q')(x_BTD), rope_table(index_BT, head_dim))
      k = rotate(project(name='k')(memory_BPD), rope_table(slot_P, head_dim))
    out = segment_cross_attention(
      q,
      k,
      v,
      index_BT=index_BT,
      lowest_BT=lowest_BT,
      lookback=self.lookback,
      scale=head_dim**-0.5,
      implementation=self.implementation,
    )
    return nn.DenseGeneral(
      width,
      axis=(-2, -1),
      use_bias=False,
      dtype=self.dtype,
      kernel_init=output_init(self.depth),
      name='out',
    )(out)


def output_init(depth: int) -> nn.initializers.Initializer:
  """Initial outputs of `depth` residual layers add up to about their input."""
  return nn.initializers.variance_scaling(
    1.0 / (2 * depth), 'fan_in', 'truncated_normal'
  )
