"""Several codebooks, each for what the ones before it leave."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from abstractinator.modules.quantizer import (
  Quantizer,
  QuantizerOutput,
  straight_through,
)
from abstractinator.modules.vector_quantizer import VectorQuantizer
from abstractinator.ops import digits as digits_lib
from abstractinator.ops import stage_logits
from abstractinator.ops.stage_logits import StageLogits
from abstractinator.types import Array


class ResidualVectorQuantizer(Quantizer):
  """M stages of vector quantization in one space of codes.

  Stage 0 quantizes the input, each further stage what is left of it. The code
  is the number whose digits are the entries found, that of stage 0 the least
  significant. The gradient of the input is that of the sum of the entries,
  whatever the number of stages.

  `forbidden`, `protected` and `cosine` concern stage 0: one forbidden digit
  forbids a code, and what is left of a unit vector has no length to ignore.

  Parameters:
    stage0 and so on: Of each `VectorQuantizer`.

  Source: Zeghidour et al., arXiv:2107.03312, section III.C.
  """

  def setup(self):
    c = self.config
    self.setup_projections(c.code_dim)
    first = dataclasses.replace(c, kind='vq', code_dim=None)
    other = dataclasses.replace(first, forbidden=(), protected=(), cosine=False)
    self.stages = [
      VectorQuantizer(
        other if stage else first,
        self.width,
        self.implementation,
        jnp.float32,
        # A stage starts once the one before it has.
        kmeans_step=stage,
        name=f'stage{stage}',
      )
      for stage in range(c.depth)
    ]

  def __call__(
    self, x_BPD: Array, is_valid_BP: Array, row_B: Array
  ) -> QuantizerOutput:
    """Quantizes; arguments as of `VectorQuantizer`."""
    y_BPC = rest_BPC = self.to_code_space(x_BPD)
    outputs = []
    for stage in self.stages:
      outputs.append(stage(rest_BPC, is_valid_BP, row_B))
      entry_BPC = stage.lookup(outputs[-1].codes_BP)
      rest_BPC = rest_BPC - lax.stop_gradient(entry_BPC)
    digits_BPM = jnp.concatenate([o.digits_BPM for o in outputs], axis=-1)
    # The sum of the entries, in the order of `lookup`.
    total_BPC = self._sum(digits_BPM)
    return QuantizerOutput(
      codes_BP=digits_lib.compose(digits_BPM, self.stage_sizes),
      digits_BPM=digits_BPM,
      vectors_BPD=self.to_model(straight_through(y_BPC, total_BPC)),
      distance_BP=sum(o.distance_BP for o in outputs),
      codebook_distance_BP=sum(o.codebook_distance_BP for o in outputs),
    )

  def _sum(self, digits_BPM: Array) -> Array:
    return sum(
      stage.lookup(digits_BPM[..., i]) for i, stage in enumerate(self.stages)
    )

  def codebooks(self) -> tuple[Array, ...]:
    """The entries of each stage, [K, C] float32."""
    return tuple(stage.entries() for stage in self.stages)

  def lookup(self, codes_BP: Array) -> Array:
    """Vectors of codes: the sum of the entries of their digits.

    Args:
      codes_BP: [B, P] int32 in 0..num_codes-1.

    Returns:
      [B, P, D] of the compute type.
    """
    digits_BPM = digits_lib.decompose(codes_BP, self.stage_sizes)
    return self.to_model(self._sum(digits_BPM))

  def expected(self, probabilities: tuple[Array, ...]) -> Array:
    """Mean vector under probabilities of digits, see `Quantizer`."""
    pairs = zip(self.stages, probabilities, strict=True)
    return self.to_model(sum(stage.expected((p,)) for stage, p in pairs))

  def stage_logits(
    self,
    h_BPD: Array,
    digits_BPM: Array | None,
    *,
    residual_conditioning: bool,
    distance: str,
  ) -> StageLogits:
    """Scores of every digit for predicted vectors; see `ops.stage_logits`.

    Args:
      h_BPD: [B, P, D], projected like an input.
      digits_BPM: [B, P, M] int32, or None for the best ones.
      residual_conditioning: Whether a stage scores what the digits before it
        leave.
      distance: 'dot' or 'squared'.

    Returns:
      Logits [B, P, K] float32 of each stage and the best digits.
    """
    return stage_logits.stage_logits(
      self.to_code_space(h_BPD),
      self.codebooks(),
      digits_BPM,
      residual_conditioning=residual_conditioning,
      distance=distance,
    )
