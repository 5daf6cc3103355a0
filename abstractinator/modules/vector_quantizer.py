"""Nearest entry of a codebook."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from abstractinator.modules.quantizer import (
  Quantizer,
  QuantizerOutput,
  straight_through,
  unit,
)
from abstractinator.ops import codebook, stage_logits
from abstractinator.ops.nearest_code import nearest_code
from abstractinator.ops.stage_logits import StageLogits
from abstractinator.types import Array


class VectorQuantizer(Quantizer):
  """Nearest entry of a codebook, in a space of its own.

  The input goes from D to C dimensions, is replaced by the nearest of K entries
  and comes back to D. Small C makes the search cheap and keeps entries alive.

  Attributes:
    kmeans_step: The step that starts the codebook, if it starts by k-means.

  Parameters:
    codebook/embedding: [K, C], if the codebook learns by gradient.

  Collections:
    vq: `state`, a `codebook.CodebookState`, if the codebook is a moving
      average. A forward pass with `vq` mutable adds to the sums of the step;
      `codebook.advance` does the rest.

  Source: van den Oord et al., arXiv:1711.00937.
  """

  kmeans_step: int = 0

  def setup(self):
    c = self.config
    self.setup_projections(c.code_dim)
    if c.codebook == 'gradient':
      self.codebook = nn.Embed(
        c.codebook_size, self.width, embedding_init=nn.initializers.normal(1.0)
      )
    else:
      self.state = self.variable('vq', 'state', self._initial_state)

  def _initial_state(self) -> codebook.CodebookState:
    c = self.config
    return codebook.initial_state(
      self.make_rng('params'),
      c.codebook_size,
      self.width,
      decay=c.decay,
      reset_interval_steps=c.reset_interval_steps,
      reset_after_steps=c.reset_after_steps,
      reset_usage=c.reset_usage,
      # What is never chosen needs no new place.
      protected=c.forbidden + c.protected,
      kmeans_step=self.kmeans_step if c.start == 'kmeans' else None,
    )

  def __call__(
    self, x_BPD: Array, is_valid_BP: Array, row_B: Array
  ) -> QuantizerOutput:
    """Quantizes.

    Args:
      x_BPD: [B, P, D] pooled segments.
      is_valid_BP: [B, P] bool; other slots touch no statistic.
      row_B: [B] int32, see `Batch`.

    Returns:
      Codes and vectors.
    """
    y_BPC = self.to_code_space(x_BPD)
    y_NC = lax.stop_gradient(y_BPC.reshape(-1, self.width))
    entries_KC = self.entries()
    codes_N = nearest_code(
      y_NC,
      lax.stop_gradient(entries_KC),
      implementation=self.implementation.nearest_code,
      forbidden=self.config.forbidden,
    )
    codes_BP = codes_N.reshape(is_valid_BP.shape)
    learns = self.config.codebook == 'gradient'
    if not learns and self.is_mutable_collection('vq'):
      self._observe(y_NC, codes_N, is_valid_BP, row_B)
    entry_BPC = entries_KC[codes_BP]
    distance_BP = _mean_square(y_BPC - lax.stop_gradient(entry_BPC))
    return QuantizerOutput(
      codes_BP=codes_BP,
      digits_BPM=codes_BP[..., None],
      vectors_BPD=self.to_model(straight_through(y_BPC, entry_BPC)),
      distance_BP=distance_BP,
      codebook_distance_BP=_mean_square(lax.stop_gradient(y_BPC) - entry_BPC)
      if learns
      else jnp.zeros_like(distance_BP),
    )

  def _observe(self, y_NC, codes_N, is_valid_BP, row_B) -> None:
    if self.is_initializing():
      return
    slots = is_valid_BP.shape[1]
    name_BP = row_B[:, None] * slots + jnp.arange(slots)
    self.state.value = codebook.observe(
      self.state.value,
      y_NC,
      codes_N,
      is_valid_BP.reshape(-1),
      name_BP.reshape(-1).astype(jnp.uint32),
    )

  def entries(self) -> Array:
    """The codebook, [K, C] float32; unit vectors if `cosine`."""
    if self.config.codebook == 'gradient':
      entries_KC = self.codebook.embedding
    else:
      entries_KC = self.state.value.codebook_KC
    return unit(entries_KC) if self.config.cosine else entries_KC

  def codebooks(self) -> tuple[Array, ...]:
    """The entries of each stage, [K, C] float32."""
    return (self.entries(),)

  def lookup(self, codes_BP: Array) -> Array:
    """Vectors of codes.

    Args:
      codes_BP: [B, P] int32 in 0..K-1.

    Returns:
      [B, P, D] of the compute type.
    """
    return self.to_model(self.entries()[codes_BP])

  def expected(self, probabilities: tuple[Array, ...]) -> Array:
    """Mean vector under probabilities of codes, see `Quantizer`."""
    (p_BPK,) = probabilities
    return self.to_model(p_BPK @ self.entries())

  def stage_logits(
    self,
    h_BPD: Array,
    digits_BPM: Array | None,
    *,
    residual_conditioning: bool,
    distance: str,
  ) -> StageLogits:
    """Scores of every code; see `ResidualVectorQuantizer.stage_logits`."""
    return stage_logits.stage_logits(
      self.to_code_space(h_BPD),
      self.codebooks(),
      digits_BPM,
      residual_conditioning=residual_conditioning,
      distance=distance,
    )


def _mean_square(x_BPC: Array) -> Array:
  return jnp.mean(jnp.square(x_BPC), axis=-1)
