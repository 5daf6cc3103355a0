"""Multi-head latent attention: one narrow vector an id is all heads' value."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from abstractinator.config.attention import AttentionConfig
from abstractinator.modules.attention import Attention, output_projection
from abstractinator.ops.rope import rope_table, rotate
from abstractinator.types import Array


class PerHead(nn.Module):
  """A linear map of its own for each head.

  Attributes:
    features: Width of the result.
    dtype: Compute type.

  Parameters:
    kernel: [H, width of the input, features].
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., H, width] to [..., H, features]."""
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0),
      (*x.shape[-2:], self.features),
    )
    x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
    return jnp.einsum('...hi,hio->...ho', x, kernel)


class LatentAttention(Attention):
  """Attention by scores and values out of one shared latent vector an id.

  With c = `kv_dim` and r = `retrieval_dim`, of an id x at a position:
  its latent is kv(x), of width c, and the value of every head; its keys are
  k(latent), H of width r, rotated; its queries are query_up(query_down(q(x))),
  H of width r, rotated, each map of the head's own. What a head has attended
  to, of width c, is mapped to `head_dim` by value_up and then merged.

  Scores are scaled by 1/sqrt(r) here and nowhere else: the initial query_up is
  not divided by sqrt(r).

  Parameters:
    q/kernel: [D, H, head_dim].
    query_down/kernel: [H, head_dim, query_dim].
    query_up/kernel: [H, query_dim, r].
    kv/kernel: [D, c].
    k/kernel: [c, H, r].
    value_up/kernel: [H, c, head_dim].
    out/kernel: [H, head_dim, D].
    Where one vector is in sight, cross-attention has none of those of queries
    and keys.

  Source: after DeepSeek-V2, arXiv:2405.04434, section 2.1, with rotary
  positions on the whole of each head's r dimensions.
  """

  def setup(self):
    c = self.config

    def heads(width):
      return nn.DenseGeneral(
        (self.num_heads, width), use_bias=False, dtype=self.dtype
      )

    self.q = heads(self.head_dim)
    self.query_down = PerHead(c.query_dim, self.dtype)
    self.query_up = PerHead(c.retrieval_dim, self.dtype)
    self.kv = nn.Dense(c.kv_dim, use_bias=False, dtype=self.dtype)
    self.k = heads(c.retrieval_dim)
    self.value_up = PerHead(self.head_dim, self.dtype)
    self.out = output_projection(self.d_model, self.depth, self.dtype)

  @staticmethod
  def cached_widths(
    num_heads: int, head_dim: int, config: AttentionConfig
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """A key for each head, and one value for all."""
    return (num_heads, config.retrieval_dim), (1, config.kv_dim)

  @property
  def scale(self) -> float:
    """One over the root of the width that scores are taken in."""
    return self.config.retrieval_dim**-0.5

  def project(
    self, x_BSD: Array, position: Array
  ) -> tuple[Array, Array, Array]:
    """See `Attention`."""
    latent_BSE = self.kv(x_BSD)
    q = self.project_query(x_BSD, position)
    return q, self._keys(latent_BSE, position), latent_BSE[:, :, None]

  def project_query(self, x_BTD: Array, position_BT: Array) -> Array:
    """See `Attention`; of any shape of positions."""
    q = self.query_up(self.query_down(self.q(x_BTD)))
    return rotate(q, rope_table(position_BT, self.config.retrieval_dim))

  def project_memory(
    self, memory_BUD: Array, position_U: Array | None
  ) -> tuple[Array | None, Array]:
    """See `Attention`."""
    latent_BUE = self.kv(memory_BUD)
    v = latent_BUE[:, :, None]
    if position_U is None:
      return None, v
    return self._keys(latent_BUE, position_U), v

  def merge(self, out_BSHE: Array) -> Array:
    """See `Attention`."""
    return self.out(self.value_up(out_BSHE))

  def _keys(self, latent_BSE: Array, position: Array) -> Array:
    table = rope_table(position, self.config.retrieval_dim)
    return rotate(self.k(latent_BSE), table)
