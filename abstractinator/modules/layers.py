"""Small pieces shared by the modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.take_rows import take_rows
from abstractinator.types import Array


class RMSNorm(nn.Module):
  """Root mean square normalisation, computed in float32.

  Written out because the order of the products decides what the backward pass
  keeps: here the input and one number per vector.

  Attributes:
    dtype: Type of the result.

  Parameters:
    scale: [D] float32.

  Source: Zhang and Sennrich, arXiv:1910.07467.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[..., D] to [..., D]."""
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    return _rms_norm(x, scale).astype(self.dtype)


@jax.checkpoint
def _rms_norm(x: Array, scale: Array) -> Array:
  x = x.astype(jnp.float32)
  inverse = lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)
  return x * inverse * scale


def shift_right(ids_BS: Array, is_first_BS: Array, first_id: int) -> Array:
  """What a decoder is fed to predict each id: the id before it.

  Args:
    ids_BS: [B, S] int32.
    is_first_BS: [B, S] bool, ids that are predicted from nothing.
    first_id: Fed in place of the id before those.

  Returns:
    [B, S] int32.
  """
  previous = jnp.pad(ids_BS, ((0, 0), (1, 0)))[:, :-1]
  return jnp.where(is_first_BS, first_id, previous)


class Embed(nn.Embed):
  """`nn.Embed` whose gradient is added up in float32; see `take_rows`.

  Attributes:
    dtype: Has to be given.
  """

  def __call__(self, ids: Array) -> Array:
    """[...] int32 to [..., D]."""
    return take_rows(self.embedding, ids, self.dtype)


def embed(
  num: int, width: int, dtype: jnp.dtype, name: str | None = None
) -> Embed:
  """A table of `num` vectors, normal with standard deviation 1/2."""
  return Embed(
    num,
    width,
    dtype=dtype,
    embedding_init=nn.initializers.normal(0.5),
    name=name,
  )


def logits(num: int, dtype: jnp.dtype, name: str | None = None) -> nn.Dense:
  """A head whose first logits are small, so that its loss is near ln(num)."""
  return nn.Dense(
    num,
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.variance_scaling(0.01, 'fan_in', 'normal'),
    name=name,
  )
