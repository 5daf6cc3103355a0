"""Pools the ids of each segment into one vector or a few."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.modules import layers
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segment_pool import segment_pool
from abstractinator.types import Array


class LearnedQueryAttention(nn.Module):
  """Multi-head attention of learned queries over each segment.

  Queries are the same everywhere, so their product with the key projection is
  taken first: scores cost D x Q H instead of D x D an id, and keys never exist.

  Attributes:
    num_heads: Heads; they divide the width.
    num_queries: Q, vectors of a segment.
    implementation: Of the op, see `ops.segment_pool`.
    dtype: Compute type.

  Parameters:
    query: [Q D] float32, one query after another.
    q/kernel, k/kernel, v/kernel: [D, H, A].
    out/kernel: [D, D].
    in_norm/scale, out_norm/scale: [D].
  """

  num_heads: int
  num_queries: int
  implementation: Implementations
  dtype: jnp.dtype

  def __call__(self, x_BSD: Array, index_BS: Array, num_slots: int) -> Array:
    """Pools segments.

    Args:
      x_BSD: [B, S, D] states.
      index_BS: [B, S] int32, segment of each id, -1 on padding.
      num_slots: P.

    Returns:
      [B, U, D] of the compute type, the Q vectors of a segment side by side;
      zeros in empty slots.
    """

    def pool(score_BSQH, value_BSHA):
      pooled_BPQHA = segment_pool(
        score_BSQH,
        value_BSHA,
        index_BS,
        num_slots=num_slots,
        implementation=self.implementation.segment_pool,
      )
      return pooled_BPQHA, None

    return self.pool_by(pool, x_BSD)[0]

  @nn.compact
  def pool_by(
    self, pool: Callable[[Array, Array], tuple[Array, Any]], x_BSD: Array
  ) -> tuple[Array, Any]:
    """Pools ids in a way of the caller's.

    Args:
      pool: From scores [B, S, Q, H] and values [B, S, H, A] of the ids to their
        means [B, P, Q, H, A], and whatever else the caller wants of them.
      x_BSD: [B, S, D] states.

    Returns:
      [B, U, D] of the compute type, and what else `pool` returned.
    """
    batch, size, width = x_BSD.shape
    queries = self.num_queries
    heads, head_dim = self.num_heads, width // self.num_heads
    # Flat, so that the parameter of one query is that query.
    query = self.param('query', nn.initializers.normal(1.0), (queries * width,))
    query_QD = query.reshape(queries, width)

    def projection(name):
      return nn.DenseGeneral(
        (heads, head_dim), use_bias=False, dtype=self.dtype, name=name
      )

    x_BSD = layers.RMSNorm(self.dtype, name='in_norm')(x_BSD)
    q_QHA = projection('q')(query_QD) * head_dim**-0.5
    k_DHA = projection('k')(jnp.eye(width))
    key_DQH = jnp.einsum('dha,qha->dqh', k_DHA, q_QHA)
    score_BSN = x_BSD @ key_DQH.reshape(width, queries * heads)
    score_BSQH = score_BSN.reshape(batch, size, queries, heads)
    pooled_BPQHA, kept = pool(score_BSQH, projection('v')(x_BSD))
    pooled_BUD = pooled_BPQHA.reshape(batch, -1, width)
    pooled_BUD = layers.RMSNorm(self.dtype, name='out_norm')(pooled_BUD)
    out = nn.Dense(width, use_bias=False, dtype=self.dtype, name='out')
    return out(pooled_BUD), kept
