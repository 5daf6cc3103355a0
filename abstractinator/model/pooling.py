"""Pooling of the ids of each segment into one vector, or a few."""

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.model import layers
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segment_pool import segment_pool
from abstractinator.types import Array


class LearnedQueryAttention(nn.Module):
  """Multi-head attention of Q learned queries to the ids of each segment.

  For query n, head h and the ids s of a segment, with x = RMSNorm(input):

    score_nhs = q_h(query_n) . k_h(x_s) / sqrt(A)
    pooled_n = out(RMSNorm(over heads: sum of softmax over s (score) v_h(x_s)))

  Queries are the same everywhere, so that q_h(query_n) is multiplied with the
  matrix of k_h first: scores cost D x Q H instead of D x D per id, and keys are
  never computed.

  Attributes:
    num_heads: Number of heads, H; a divisor of D.
    num_queries: Number of queries, Q, and so of vectors of a segment.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.

  Parameters:
    query: Queries, one after the other, [Q D] float32.
    q/kernel, k/kernel, v/kernel: [D, H, A].
    out/kernel: [D, D].
    in_norm/scale, out_norm/scale: [D].

  Source: after the pooling by learned seeds of Lee et al., Set Transformer,
    arXiv:1810.00825, section 3.2.
  """

  num_heads: int
  num_queries: int
  implementation: Implementations
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BSD: Array, index_BS: Array, num_slots: int) -> Array:
    """Pools segments.

    Args:
      x_BSD: States of the ids, [B, S, D].
      index_BS: Segment of each id, [B, S] int32, -1 on padding.
      num_slots: Number of segment slots, P.

    Returns:
      [B, U, D] of the compute type, the Q vectors of a segment side by side;
      zeros in empty slots.
    """
    batch, size, width = x_BSD.shape
    queries = self.num_queries
    heads, head_dim = self.num_heads, width // self.num_heads
    # Flat, so that the parameter of one query is that query.
    query = self.param('query', nn.initializers.normal(1.0), (queries * width,))
    query_QD = query.reshape(queries, width)

    def projection(name: str) -> nn.DenseGeneral:
      return nn.DenseGeneral(
        (heads, head_dim), use_bias=False, dtype=self.dtype, name=name
      )

    x_BSD = layers.RMSNorm(self.dtype, name='in_norm')(x_BSD)
    q_QHA = projection('q')(query_QD) * head_dim**-0.5
    k_DHA = projection('k')(jnp.eye(width))
    key_DQH = jnp.einsum('dha,qha->dqh', k_DHA, q_QHA)
    score_BSN = x_BSD @ key_DQH.reshape(width, queries * heads)
    pooled_BPQHA = segment_pool(
      score_BSN.reshape(batch, size, queries, heads),
      projection('v')(x_BSD),
      index_BS,
      num_slots=num_slots,
      implementation=self.implementation.segment_pool,
    )
    pooled_BUD = pooled_BPQHA.reshape(batch, -1, width)
    pooled_BUD = layers.RMSNorm(self.dtype, name='out_norm')(pooled_BUD)
    out = nn.Dense(width, use_bias=False, dtype=self.dtype, name='out')
    return out(pooled_BUD)
