"""Attention layers: projections around the ops that compute attention.

Both forms serve as self-attention over ids and as cross-attention from ids to
the codes of segments. A form says which queries, keys and values there are; the
base class calls the ops.
"""

from typing import cast

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.config.attention import AttentionConfig
from abstractinator.model import layers
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.attention import attention, cached_attention
from abstractinator.ops.cache import CacheStep, KeyValues
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.rope import rope_table, rotate
from abstractinator.ops.segment_cross import segment_cross_attention
from abstractinator.types import Array

# Keys [B, U, G, A] and values [B, U, G, E] of the codes that cross-attention
# sees; without keys where a single code is visible, whose weight is 1.
CodeKeyValues = tuple[Array | None, Array]


class Attention(nn.Module):
  """Base class of the forms of attention.

  A form defines the projections (`project`, `project_query`, `project_codes`),
  the scale of the scores, and how the heads are merged (`merge`). An instance
  is either self-attention (call, `step`) or cross-attention (`remember`,
  `cross`): methods that are not called create no parameters.

  Attributes:
    d_model: Width of the result, D.
    num_heads: Number of query heads, H.
    head_dim: Width of a head.
    depth: Number of blocks in the stack; see `layers.output_init`.
    config: The form and its widths.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
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
    """Returns (G, A) of the keys and (G, E) of the values in a cache."""
    raise NotImplementedError

  @property
  def scale(self) -> float:
    """Factor on the scores: one over the root of the width A of the queries."""
    raise NotImplementedError

  def rotary_table(self, position: Array) -> tuple[Array, Array]:
    """Returns the cosines and sines of positions; see `ops.rope`."""
    raise NotImplementedError

  def project(
    self, x_BSD: Array, position: Array
  ) -> tuple[Array, Array, Array]:
    """Projects ids for self-attention.

    Args:
      x_BSD: Vectors of the ids, [B, S, D].
      position: Position of each id in its row, [S] or [B, S] int32.

    Returns:
      Queries [B, S, H, A], keys [B, S, G, A] and values [B, S, G, E].
    """
    raise NotImplementedError

  def project_query(self, x_BTD: Array, position: Array) -> Array:
    """Projects ids at positions [T] or [B, T] to queries, [B, T, H, A]."""
    raise NotImplementedError

  def project_codes(
    self, memory_BUD: Array, position_U: Array | None
  ) -> CodeKeyValues:
    """Projects codes to the keys and values of cross-attention.

    Args:
      memory_BUD: Vectors of the codes, [B, U, width]; any width.
      position_U: Position of each code, [U] int32; None to compute no keys.

    Returns:
      Keys [B, U, G, A], or None, and values [B, U, G, E].
    """
    raise NotImplementedError

  def merge(self, out_BSHE: Array) -> Array:
    """Projects what the heads attended to, [B, S, H, E] to [B, S, D]."""
    raise NotImplementedError

  def __call__(
    self, x_BSD: Array, group_BS: Array, *, window: int | None
  ) -> tuple[Array, tuple[Array, Array]]:
    """Computes causal self-attention within groups.

    Args:
      x_BSD: Normalised vectors of the ids, [B, S, D].
      group_BS: Group of each id, [B, S] int32; see `ops.attention`.
      window: Number of ids before itself that an id sees; None for all.

    Returns:
      [B, S, D] of the compute type, and the keys [B, S, G, A] and values
      [B, S, G, E] by position, for a cache.
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
    self, x_BD: Array, layer: KeyValues, step: CacheStep
  ) -> tuple[Array, KeyValues]:
    """Computes self-attention of one id per row to itself and a cache.

    Args:
      x_BD: Normalised vectors of the ids, [B, D].
      layer: Keys and values of this layer, by slot of the cache.
      step: Slots and visible ids of the step, from `ops.cache.advance`.

    Returns:
      [B, D] of the compute type, and `layer` with the new keys and values.
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
  ) -> CodeKeyValues:
    """Computes the keys and values of codes once, for all ids that see them.

    Positions are counted in segments on both sides, so that a score depends on
    the distance between segments alone.

    Args:
      memory_BUD: Vectors of the codes, [B, U, width], those of a segment side
        by side.
      lookback: Number of segments before its own that an id sees.
      rows_per_slot: Codes of a segment; they share its position.

    Returns:
      Keys [B, U, G, A] and values [B, U, G, E]. If an id sees one code, whose
      weight is 1, there are no keys, and the values are the results of
      attention, [B, U, 1, D].
    """
    if lookback or rows_per_slot > 1:
      slot_U = jnp.arange(memory_BUD.shape[1]) // rows_per_slot
      return self.project_codes(memory_BUD, _positions(slot_U, lookback))
    _, v = self.project_codes(memory_BUD, None)
    # One value that all heads share is the value of each.
    shape = (*v.shape[:2], self.num_heads, v.shape[3])
    return None, self.merge(jnp.broadcast_to(v, shape))[:, :, None]

  def cross(
    self,
    x_BTD: Array,
    key_values: CodeKeyValues,
    index_BT: Array,
    lowest_BT: Array,
    *,
    lookback: int,
    rows_per_slot: int = 1,
  ) -> Array:
    """Computes cross-attention from ids to the codes of segments.

    Args:
      x_BTD: Normalised vectors of the ids, [B, T, D]; not read if an id sees
        one code.
      key_values: Keys and values from `remember`, with the same lookback and
        rows.
      index_BT: Segment of each id, [B, T] int32.
      lowest_BT: First segment that the id may see, [B, T] int32.
      lookback: Number of segments before its own that an id sees.
      rows_per_slot: Codes of a segment.

    Returns:
      [B, T, D] of the compute type.
    """
    k, v = key_values
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

  def _heads(self, *features: int) -> nn.DenseGeneral:
    """Builds a map from vectors to heads, [..., D] to [..., *features]."""
    return nn.DenseGeneral(features, use_bias=False, dtype=self.dtype)

  def _output(self) -> nn.DenseGeneral:
    """Builds the map from heads to vectors, [..., H, head_dim] to [..., D]."""
    return nn.DenseGeneral(
      self.d_model,
      axis=(-2, -1),
      use_bias=False,
      dtype=self.dtype,
      kernel_init=layers.output_init(self.depth),
    )


def _positions(slot: Array, lookback: int) -> Array:
  """Returns the positions of slots: all 0 if every distance is 0."""
  # Rotations by equal angles cancel but for rounding; by 0 they are exact.
  return slot if lookback else jnp.zeros_like(slot)


class RegularAttention(Attention):
  """Multi-head attention: softmax(q k^T / sqrt(A)) v for each head.

  Queries, keys and values are linear maps of the input, A = E = `head_dim`;
  queries and keys are rotated to their positions (`ops.rope`).

  Parameters:
    qkv/kernel: Maps of self-attention, [D, 3, H, A].
    q/kernel, k/kernel: Maps of cross-attention, [D, H, A]; absent if an id sees
      one code.
    v/kernel: Map of cross-attention, [D, H, A].
    out/kernel: Map from the heads to the result, [H, A, D].

  Source: Vaswani et al., arXiv:1706.03762, section 3.2; Su et al., RoFormer,
    arXiv:2104.09864, for the positions.
  """

  def setup(self) -> None:
    # One product for all three: on CPU it is faster than three.
    self.qkv = self._heads(3, self.num_heads, self.head_dim)
    self.q, self.k, self.v = (
      self._heads(self.num_heads, self.head_dim) for _ in range(3)
    )
    self.out = self._output()

  @staticmethod
  def cached_widths(
    num_heads: int, head_dim: int, config: AttentionConfig
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    return (num_heads, head_dim), (num_heads, head_dim)

  @property
  def scale(self) -> float:
    return self.head_dim**-0.5

  def rotary_table(self, position: Array) -> tuple[Array, Array]:
    return rope_table(position, self.head_dim)

  def project(
    self, x_BSD: Array, position: Array
  ) -> tuple[Array, Array, Array]:
    qkv = jnp.split(self.qkv(x_BSD), 3, axis=-3)
    q, k, v = (x[..., 0, :, :] for x in qkv)
    table = self.rotary_table(position)
    return rotate(q, table), rotate(k, table), v

  def project_query(self, x_BTD: Array, position: Array) -> Array:
    return rotate(self.q(x_BTD), self.rotary_table(position))

  def project_codes(
    self, memory_BUD: Array, position_U: Array | None
  ) -> CodeKeyValues:
    v = self.v(memory_BUD)
    if position_U is None:
      return None, v
    return rotate(self.k(memory_BUD), self.rotary_table(position_U)), v

  def merge(self, out_BSHE: Array) -> Array:
    return self.out(out_BSHE)


class LatentAttention(Attention):
  """Multi-head latent attention: one narrow latent vector per id is cached.

  With c = `kv_dim` and r = `retrieval_dim`, for an id x and each head h:

    latent = kv(x), of width c, is the value of every head (G = 1, E = c)
    key_h = rotate(k_h(latent)), of width r
    query_h = rotate(query_up_h(query_down_h(q_h(x)))), of width r
    result = out(value_up_h(sum of softmax(query_h key_h^T / sqrt(r)) latent))

  Scores are scaled by 1/sqrt(r) here and nowhere else: the initial query_up is
  not divided by sqrt(r). DeepSeek-V2 rotates a separate part of queries and
  keys; here all r dimensions of each head are rotated.

  Parameters:
    q/kernel: [D, H, head_dim].
    query_down/kernel: [H, head_dim, query_dim].
    query_up/kernel: [H, query_dim, r].
    kv/kernel: [D, c].
    k/kernel: [c, H, r].
    value_up/kernel: [H, c, head_dim].
    out/kernel: [H, head_dim, D].
    Cross-attention in which an id sees one code has none of q, query_down,
    query_up and k.

  Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.2.
  """

  def setup(self) -> None:
    c, query_dim, r = self._widths
    self.q = self._heads(self.num_heads, self.head_dim)
    self.query_down = layers.PerHead(query_dim, self.dtype)
    self.query_up = layers.PerHead(r, self.dtype)
    self.kv = nn.Dense(c, use_bias=False, dtype=self.dtype)
    self.k = self._heads(self.num_heads, r)
    self.value_up = layers.PerHead(self.head_dim, self.dtype)
    self.out = self._output()

  @staticmethod
  def cached_widths(
    num_heads: int, head_dim: int, config: AttentionConfig
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    c, _, r = _latent_widths(config)
    return (num_heads, r), (1, c)

  @property
  def _widths(self) -> tuple[int, int, int]:
    return _latent_widths(self.config)

  @property
  def scale(self) -> float:
    return self._widths[2] ** -0.5

  def rotary_table(self, position: Array) -> tuple[Array, Array]:
    return rope_table(position, self._widths[2])

  def project(
    self, x_BSD: Array, position: Array
  ) -> tuple[Array, Array, Array]:
    q = self.project_query(x_BSD, position)
    latent_BSE = self.kv(x_BSD)
    return q, self._keys(latent_BSE, position), latent_BSE[:, :, None]

  def project_query(self, x_BTD: Array, position: Array) -> Array:
    q = self.query_up(self.query_down(self.q(x_BTD)))
    return rotate(q, self.rotary_table(position))

  def project_codes(
    self, memory_BUD: Array, position_U: Array | None
  ) -> CodeKeyValues:
    latent_BUE = self.kv(memory_BUD)
    v = latent_BUE[:, :, None]
    if position_U is None:
      return None, v
    return self._keys(latent_BUE, position_U), v

  def merge(self, out_BSHE: Array) -> Array:
    return self.out(self.value_up(out_BSHE))

  def _keys(self, latent_BSE: Array, position: Array) -> Array:
    return rotate(self.k(latent_BSE), self.rotary_table(position))


def _latent_widths(config: AttentionConfig) -> tuple[int, int, int]:
  """Returns c, the width of a compressed query, and r."""
  # `AttentionConfig` requires all three with form 'mla'.
  return cast(
    tuple[int, int, int],
    (config.kv_dim, config.query_dim, config.retrieval_dim),
  )


# By `attention.form`.
FORMS: dict[str, type[Attention]] = {
  'regular': RegularAttention,
  'mla': LatentAttention,
}
