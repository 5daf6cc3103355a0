"""Layers that several modules share: norm, embeddings, heads, feed-forward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from abstractinator.ops.take_rows import take_rows
from abstractinator.types import Array


class RMSNorm(nn.Module):
  """Root mean square norm: x / sqrt(mean(x^2) + 1e-6) * scale, over D.

  It is computed in float32. `nn.RMSNorm` orders the products otherwise, and the
  order decides what the backward pass keeps: here the input and one number per
  vector.

  Attributes:
    dtype: Type of the result.

  Parameters:
    scale: Factor of each dimension, [D] float32.

  Source: Zhang and Sennrich, arXiv:1910.07467, equation 4.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises vectors, [..., D] to [..., D]."""
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    return (
      _rms_norm(_several_rows(x), scale).reshape(x.shape).astype(self.dtype)
    )


def _several_rows(x: Array) -> Array:
  """Cuts a lone row, [1, S, D], into eight of S / 8 if they come out even.

  XLA sums the gradient of the scale 40 times slower over one row than over
  eight on CPU, where a step of a single row of 4096 ids loses a tenth by it.
  """
  is_lone = x.ndim == 3 and len(x) == 1 and x.shape[1] % 8 == 0
  return x.reshape(8, -1, x.shape[-1]) if is_lone else x


@jax.checkpoint
def _rms_norm(x: Array, scale: Array) -> Array:
  x = x.astype(jnp.float32)
  inverse = lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)
  return x * inverse * scale


def shift_right(ids_BS: Array, is_first_BS: Array, first_id: int) -> Array:
  """Returns the id before each id: the input from which a decoder predicts it.

  Args:
    ids_BS: Ids to predict, [B, S] int32.
    is_first_BS: True for ids with no id before them in their context, [B, S]
      bool.
    first_id: Id that takes the place of the missing one, BOS.

  Returns:
    [B, S] int32.
  """
  previous = jnp.pad(ids_BS, ((0, 0), (1, 0)))[:, :-1]
  return jnp.where(is_first_BS, first_id, previous)


class Embed(nn.Embed):
  """Embedding table whose gradient is summed in float32; see `take_rows`.

  The attributes are those of `nn.Embed`; `dtype`, the type of the result, has
  to be given.
  """

  def __call__(self, ids: Array) -> Array:
    """Returns the vectors of ids, [...] int32 to [..., D]."""
    return take_rows(self.embedding, ids, self.dtype)


def embed(
  num: int, width: int, dtype: jnp.dtype, name: str | None = None
) -> Embed:
  """Builds a table of `num` vectors, normal with standard deviation 1/2."""
  return Embed(
    num,
    width,
    dtype=dtype,
    embedding_init=nn.initializers.normal(0.5),
    name=name,
  )


def logits(num: int, dtype: jnp.dtype, name: str | None = None) -> nn.Dense:
  """Builds a head with small first logits, whose loss starts near ln(num)."""
  return nn.Dense(
    num,
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.variance_scaling(0.01, 'fan_in', 'normal'),
    name=name,
  )


def output_init(depth: int) -> nn.initializers.Initializer:
  """Returns the initialiser of a layer that adds to the residual stream.

  Its variance is divided by 2 x depth, so that the outputs of the 2 x depth
  layers of a stack add up to about the size of the stack's input at first.

  Args:
    depth: Number of blocks of the stack, each with two such layers.
  """
  return nn.initializers.variance_scaling(
    1.0 / (2 * depth), 'fan_in', 'truncated_normal'
  )


class SwiGLU(nn.Module):
  """Gated feed-forward layer: down(silu(gate x) * up x).

  Attributes:
    hidden: Hidden width, F.
    depth: Number of blocks in the stack; see `output_init`.
    dtype: Type of activations and matrix products; parameters are float32.

  Parameters:
    gate_up/kernel: [D, 2, F].
    down/kernel: [F, D].

  Source: Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202,
    equation 6.
  """

  hidden: int
  depth: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps vectors, [..., D] to [..., D] of the compute type."""
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
  """Returns silu(gate) * up of [..., 2, F]; backward keeps the input only."""
  gate, up = jnp.split(both, 2, axis=-2)
  return nn.silu(gate[..., 0, :]) * up[..., 0, :]


class PerHead(nn.Module):
  """Linear map with a matrix for each head.

  Attributes:
    features: Width of the result.
    dtype: Type of activations and matrix products; parameters are float32.

  Parameters:
    kernel: One matrix per head, [H, width of the input, features].
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps the vectors of each head, [..., H, width] to [..., H, features]."""
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0),
      (*x.shape[-2:], self.features),
    )
    x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
    return jnp.einsum('...hi,hio->...ho', x, kernel)
