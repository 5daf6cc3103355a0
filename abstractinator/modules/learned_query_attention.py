"""Pools the ids of each segment into one vector."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.modules import layers
from abstractinator.ops.segment_pool import segment_pool
from abstractinator.types import Array


class LearnedQueryAttention(nn.Module):
  """Multi-head attention of one learned query over each segment.

  The query is the same everywhere, so its product with the key projection is
  taken first: scores cost D x H instead of D x D an id, and keys never exist.

  Attributes:
    num_heads: Heads; they divide the width.
    implementation: Of the op, see `ops.segment_pool`.
    dtype: Compute type.

  Parameters:
    query: [D] float32.
    q/kernel, k/kernel, v/kernel: [D, H, A].
    out/kernel: [D, D].
    in_norm/scale, out_norm/scale: [D].
  """

  num_heads: int
  implementation: str
  dtype: jnp.dtype

  def __call__(self, x_BSD: Array, index_BS: Array, num_slots: int) -> Array:
    """Pools segments.

    Args:
      x_BSD: [B, S, D] states.
      index_BS: [B, S] int32, segment of each id, -1 on padding.
      num_slots: P.

    Returns:
      [B, P, D] of the compute type; zeros in empty slots.
    """

    def pool(score_BSH, value_BSHA):
      pooled_BPHA = segment_pool(
        score_BSH,
        value_BSHA,
        index_BS,
        num_slots=num_slots,
        implementation=self.implementation,
      )
      return pooled_BPHA, None

    return self.pool_by(pool, x_BSD)[0]

  @nn.compact
  def pool_by(
    self, pool: Callable[[Array, Array], tuple[Array, Any]], x_BSD: Array
  ) -> tuple[Array, Any]:
    """Pools ids in a way of the caller's.

    Args:
      pool: From scores [B, S, H] and values [B, S, H, A] of the ids to their
        means [B, P, H, A], and whatever else the caller wants of them.
      x_BSD: [B, S, D] states.

    Returns:
      [B, P, D] of the compute type, and what else `pool` returned.
    """
    width = x_BSD.shape[-1]
    heads, head_dim = self.num_heads, width // self.num_heads
    query_D = self.param('query', nn.initializers.normal(1.0), (width,))

    def projection(name):
      return nn.DenseGeneral(
        (heads, head_dim), use_bias=False, dtype=self.dtype, name=name
      )

    x_BSD = layers.RMSNorm(self.dtype, name='in_norm')(x_BSD)
    q_HA = projection('q')(query_D) * head_dim**-0.5
    k_DHA = projection('k')(jnp.eye(width))
    score_BSH = x_BSD @ jnp.einsum('dha,ha->dh', k_DHA, q_HA)
    pooled_BPHA, kept = pool(score_BSH, projection('v')(x_BSD))
    pooled_BPD = pooled_BPHA.reshape(*pooled_BPHA.shape[:2], width)
    pooled_BPD = layers.RMSNorm(self.dtype, name='out_norm')(pooled_BPD)
    out = nn.Dense(width, use_bias=False, dtype=self.dtype, name='out')
    return out(pooled_BPD), kept
