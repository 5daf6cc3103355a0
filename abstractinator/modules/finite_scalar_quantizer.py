"""Codes without a codebook: numbers rounded to a few levels."""

import jax.numpy as jnp

from abstractinator.modules.quantizer import Quantizer, QuantizerOutput
from abstractinator.ops import digits as digits_lib
from abstractinator.ops import fsq
from abstractinator.types import Array


class FiniteScalarQuantizer(Quantizer):
  """Finite scalar quantization: M = C dimensions, each rounded.

  The code is the number whose digits are the levels, that of dimension 0 the
  least significant. There is nothing to learn but the projections, no state,
  and no need of a commitment loss.

  Source: Mentzer et al., arXiv:2309.15505.
  """

  def setup(self):
    self.setup_projections(len(self.config.levels))

  def __call__(
    self, x_BPD: Array, is_valid_BP: Array, row_B: Array
  ) -> QuantizerOutput:
    """Quantizes; slots do not touch each other, so only `x_BPD` counts."""
    del row_B
    value_BPC, digits_BPM = fsq.quantize(
      self.to_code_space(x_BPD), self.config.levels
    )
    zeros_BP = jnp.zeros(is_valid_BP.shape, jnp.float32)
    return QuantizerOutput(
      codes_BP=digits_lib.compose(digits_BPM, self.stage_sizes),
      digits_BPM=digits_BPM,
      vectors_BPD=self.to_model(value_BPC),
      distance_BP=zeros_BP,
      codebook_distance_BP=zeros_BP,
    )

  def codebooks(self) -> None:
    """There are none."""
    return None

  def lookup(self, codes_BP: Array) -> Array:
    """Vectors of codes [B, P] int32, [B, P, D] of the compute type."""
    digits_BPM = digits_lib.decompose(codes_BP, self.stage_sizes)
    return self.to_model(fsq.values(digits_BPM, self.config.levels))

  def expected(self, probabilities: tuple[Array, ...]) -> Array:
    """Mean vector under probabilities of digits, see `Quantizer`."""
    # Values are linear in digits, so that the mean digit has the mean value.
    digits_BPM = jnp.stack(
      [p @ jnp.arange(p.shape[-1], dtype=p.dtype) for p in probabilities], -1
    )
    return self.to_model(fsq.values(digits_BPM, self.config.levels))
