"""Attention layers: projections around the ops."""

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.config.attention import AttentionConfig
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.attention import attention, cached_attention
from abstractinator.ops.cache import KeyValues, Step
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.rope import rope_table, rotate
from abstractinator.ops.segment_cross import segment_cross_attention
from abstractinator.types import Array

# Keys, if there is need of them, and values of a memory.
Remembered = tuple[Array | None, Array]


class Attention(nn.Module):
  """What all forms of attention share: the ops, and how to reach them.

  A form says how queries, keys and values are made (`project`, `project_query`
  and `project_memory`), how scores are scaled, and what becomes of the result
  (`merge`). One instance serves either as self-attention or as
  cross-attention: parameters exist for what is called.

  Attributes:
    d_model: D of the result.
    num_heads: H.
    head_dim: Width of a head.
    depth: Layers of the stack, which scale down the initial output.
    config: Of the form.
    implementation: Of the ops, see `ops.attention` and `ops.segment_cross`.
    dtype: Compute type.
  """

  d_model: int
  num_heads: int
  head_dim: int
  depth: int
  config: AttentionConfig
  implementation: Implementations
  dtype: jnp.dtype

  @staticmethod
  def cached_widths(
    num_heads: int, head_dim: int, config: AttentionConfig
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads and width of the keys and of the values that a cache holds."""
    raise NotImplementedError

  @property
  def scale(self) -> float:
    """Factor on the scores, the same for every implementation."""
    raise NotImplementedError

  def project(
    self, x_BSD: Array, position: Array
  ) -> tuple[Array, Array, Array]:
    """Queries, keys and values of ids at positions, [S] or [B, S] int32."""
    raise NotImplementedError

  def project_query(self, x_BTD: Array, position_BT: Array) -> Array:
    """Queries of cross-attention, [B, T, H, A], at positions [B, T] int32."""
    raise NotImplementedError

  def project_memory(
    self, memory_BUD: Array, position_U: Array | None
  ) -> tuple[Array | None, Array]:
    """Keys and values of cross-attention.

    Args:
      memory_BUD: [B, U, M] of any width M.
      position_U: [U] int32; None where there is no need of keys.

    Returns:
      [B, U, G, A], None without positions, and [B, U, G, E].
    """
    raise NotImplementedError

  def merge(self, out_BSHE: Array) -> Array:
    """[B, S, H, E] from the op to [B, S, D]."""
    raise NotImplementedError

  def __call__(
    self, x_BSD: Array, group_BS: Array, *, window: int | None
  ) -> tuple[Array, tuple[Array, Array]]:
    """Causal self-attention within groups.

    Args:
      x_BSD: [B, S, D], normalised.
      group_BS: [B, S] int32, see `ops.attention`.
      window: How many ids before itself an id sees, None for all.

    Returns:
      [B, S, D] of the compute type, and keys [B, S, G, A] and values
      [B, S, G, E] by position.
    """
    q, k, v = self.project(x_BSD, jnp.arange(x_BSD.shape[1]))
    out = attention(
      q,
      k,
      v,
      group_BS=group_BS,
      window=window,
      scale=self.scale,
      implementation=self.implementation.attention,
    )
    return self.merge(out), (k, v)

  def step(
    self, x_BD: Array, layer: KeyValues, step: Step
  ) -> tuple[Array, KeyValues]:
    """Self-attention of one id a row to itself and those of a cache.

    Args:
      x_BD: [B, D], normalised.
      layer: Keys and values by slot.
      step: From `ops.cache.advance`.

    Returns:
      [B, D] of the compute type, and `layer` with the step.
    """
    q, k, v = self.project(x_BD[:, None], step.position_B[:, None])
    layer = cache_lib.write(layer, k[:, 0], v[:, 0], step)
    out = cached_attention(
      q[:, 0],
      layer.key_BGWA,
      layer.value_BGWE,
      sees_BW=step.sees_BW,
      scale=self.scale,
    )
    return self.merge(out[:, None])[:, 0], layer

  def remember(
    self, memory_BUD: Array, *, lookback: int, rows_per_slot: int = 1
  ) -> Remembered:
    """What `cross` reads of a memory, the same for all ids that attend to it.

    Positions are counted in segments on both sides, so that a score depends on
    the distance between segments alone.

    Args:
      memory_BUD: [B, U, M], vectors of segments, those of one side by side.
      lookback: How many segments before its own an id sees.
      rows_per_slot: Vectors of a segment; they share its position.

    Returns:
      Keys [B, U, G, A] and values [B, U, G, E]. Where an id sees one vector,
      whose weight is 1, there are no keys, and its results are the values:
      [B, U, 1, D].
    """
    if lookback or rows_per_slot > 1:
      slot_U = jnp.arange(memory_BUD.shape[1]) // rows_per_slot
      return self.project_memory(memory_BUD, _positions(slot_U, lookback))
    _, v = self.project_memory(memory_BUD, None)
    # One value that all heads share is the value of each.
    shape = (*v.shape[:2], self.num_heads, v.shape[3])
    return None, self.merge(jnp.broadcast_to(v, shape))[:, :, None]

  def cross(
    self,
    x_BTD: Array,
    remembered: Remembered,
    index_BT: Array,
    lowest_BT: Array,
    *,
    lookback: int,
    rows_per_slot: int = 1,
  ) -> Array:
    """Attention to segments; see `ops.segment_cross` for the indices.

    Args:
      x_BTD: [B, T, D], normalised; not read where one vector is visible.
      remembered: From `remember`, with the same lookback and rows.
      index_BT: [B, T] int32, the segment of each id.
      lowest_BT: [B, T] int32, the first segment it may see.
      lookback: How many segments before its own an id sees.
      rows_per_slot: Vectors of a segment.

    Returns:
      [B, T, D] of the compute type.
    """
    k, v = remembered
    position_BT = _positions(index_BT, lookback)
    out = segment_cross_attention(
      None if k is None else self.project_query(x_BTD, position_BT),
      k,
      v,
      index_BT=index_BT,
      lowest_BT=lowest_BT,
      lookback=lookback,
      rows_per_slot=rows_per_slot,
      scale=self.scale,
      implementation=self.implementation.segment_cross,
    )
    return out[:, :, 0] if k is None else self.merge(out)


def _positions(slot: Array, lookback: int) -> Array:
  """Of slots; the same for all without a distance, to be free of rounding."""
  return slot if lookback else jnp.zeros_like(slot)


class RegularAttention(Attention):
  """Multi-head attention: queries, keys and values of each head are linear.

  Parameters:
    qkv/kernel: [D, 3, H, A], of self-attention.
    q/kernel, k/kernel: [D, H, A], of cross-attention with more than one vector
      in sight only.
    v/kernel: [D, H, A], of cross-attention.
    out/kernel: [H, A, D].

  Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762.
  """

  def setup(self):
    # One product for all three: on CPU it is faster than three.
    self.qkv = self._heads(3, self.num_heads, self.head_dim)
    self.q, self.k, self.v = (
      self._heads(self.num_heads, self.head_dim) for _ in range(3)
    )
    self.out = output_projection(self.d_model, self.depth, self.dtype)

  @staticmethod
  def cached_widths(
    num_heads: int, head_dim: int, config: AttentionConfig
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """A key and a value for each head."""
    return (num_heads, head_dim), (num_heads, head_dim)

  @property
  def scale(self) -> float:
    """One over the root of the width of a head."""
    return self.head_dim**-0.5

  def project(
    self, x_BSD: Array, position: Array
  ) -> tuple[Array, Array, Array]:
    """See `Attention`."""
    qkv = jnp.split(self.qkv(x_BSD), 3, axis=-3)
    q, k, v = (x[..., 0, :, :] for x in qkv)
    table = rope_table(position, self.head_dim)
    return rotate(q, table), rotate(k, table), v

  def project_query(self, x_BTD: Array, position_BT: Array) -> Array:
    """See `Attention`."""
    return rotate(self.q(x_BTD), rope_table(position_BT, self.head_dim))

  def project_memory(
    self, memory_BUD: Array, position_U: Array | None
  ) -> tuple[Array | None, Array]:
    """See `Attention`."""
    v = self.v(memory_BUD)
    if position_U is None:
      return None, v
    table = rope_table(position_U, self.head_dim)
    return rotate(self.k(memory_BUD), table), v

  def merge(self, out_BSHE: Array) -> Array:
    """See `Attention`."""
    return self.out(out_BSHE)

  def _heads(self, *features: int) -> nn.DenseGeneral:
    return nn.DenseGeneral(features, use_bias=False, dtype=self.dtype)


def output_projection(
  d_model: int, depth: int, dtype: jnp.dtype
) -> nn.DenseGeneral:
  """Heads back to the width of the model, [..., H, A] to [..., D]."""
  return nn.DenseGeneral(
    d_model,
    axis=(-2, -1),
    use_bias=False,
    dtype=dtype,
    kernel_init=output_init(depth),
  )


def output_init(depth: int) -> nn.initializers.Initializer:
  """Initial outputs of `depth` residual layers add up to about their input."""
  return nn.initializers.variance_scaling(
    1.0 / (2 * depth), 'fan_in', 'truncated_normal'
  )
