"""What every quantizer is: from vectors to codes, and back."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import QuantizerConfig
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array


@flax.struct.dataclass
class QuantizerOutput:
  """What a quantizer makes of the vectors of segments.

  P counts vectors here: U of them where a segment has several.

  Attributes:
    codes_BP: [B, P] int32 in 0..num_codes-1; arbitrary in empty slots.
    digits_BPM: [B, P, M] int32, the digit of each stage; see `ops.digits`.
    vectors_BPD: [B, P, D] the codes as vectors, with the gradient of the input
      (straight-through).
    distance_BP: [B, P] float32, mean squared distance over C from the input to
      its code, summed over stages, with a gradient to the input only; the
      commitment loss. 0 where there is no codebook.
    codebook_distance_BP: [B, P] float32, the same with a gradient to the
      codebook only; 0 unless the codebook learns by gradient.
  """

  codes_BP: Array
  digits_BPM: Array
  vectors_BPD: Array
  distance_BP: Array
  codebook_distance_BP: Array


class Quantizer(nn.Module):
  """The interface, and the way to the space of the codes and back.

  Quantizers are called with vectors and look codes up:

    __call__(x_BPD, is_valid_BP, row_B) -> QuantizerOutput
    lookup(codes_BP) -> vectors [B, P, D]
    expected(probabilities) -> the mean vector [B, P, D] under probabilities
      [B, P, K] float32 of each digit
    codebooks() -> M arrays [K, C] float32, or None where there are none

  Attributes:
    config: Sizes and policies.
    d_model: D.
    implementation: Of the search, see `ops.nearest_code`.
    dtype: Compute type of the projections; all else is in float32.

  Parameters:
    down/kernel: [D, C], up/kernel: [C, D]; none if C is D by `code_dim` None.
  """

  config: QuantizerConfig
  d_model: int
  implementation: Implementations
  dtype: jnp.dtype

  @property
  def stage_sizes(self) -> tuple[int, ...]:
    """Values of each digit, [M]."""
    return self.config.stage_sizes

  @property
  def num_stages(self) -> int:
    """M."""
    return self.config.num_stages

  @property
  def num_codes(self) -> int:
    """Codes there are."""
    return self.config.num_codes

  def setup_projections(self, width: int | None) -> None:
    """Makes the way to `width` dimensions and back; None for none."""
    self.width = self.d_model if width is None else width
    self.is_projected = width is not None
    if self.is_projected:
      self.down = nn.Dense(width, use_bias=False, dtype=self.dtype)
      self.up = nn.Dense(self.d_model, use_bias=False, dtype=self.dtype)

  def to_code_space(self, x_BPD: Array) -> Array:
    """[B, P, D] to [B, P, C] float32; unit vectors if `cosine`."""
    y_BPC = self.down(x_BPD) if self.is_projected else x_BPD
    y_BPC = by_rows(y_BPC).astype(jnp.float32)
    return unit(y_BPC) if self.config.cosine else y_BPC

  def to_model(self, y_BPC: Array) -> Array:
    """[B, P, C] to [B, P, D] of the compute type."""
    y_BPC = y_BPC.astype(self.dtype)
    return by_rows(self.up(y_BPC)) if self.is_projected else y_BPC


def unit(x: Array) -> Array:
  """Scales [..., C] float32 to length 1; zeros stay zeros."""
  return x * lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def straight_through(y_BPC: Array, entry_BPC: Array) -> Array:
  """The value of the entry, the gradient of the input."""
  return y_BPC + lax.stop_gradient(entry_BPC - y_BPC)
