"""Turns vectors into codes."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import QuantizerConfig
from abstractinator.ops import codebook
from abstractinator.ops.nearest_code import nearest_code
from abstractinator.types import Array


@flax.struct.dataclass
class QuantizerOutput:
  """What a quantizer makes of a row of segments.

  Attributes:
    codes_BP: [B, P] int32; arbitrary in empty slots.
    vectors_BPD: [B, P, D] the codes as vectors, with the gradient of the input
      (straight-through).
    distance_BP: [B, P] float32, mean squared distance over C from the input to
      its code, with a gradient to the input only; the commitment loss.
  """

  codes_BP: Array
  vectors_BPD: Array
  distance_BP: Array


class VectorQuantizer(nn.Module):
  """Nearest entry of an EMA codebook, in a space of its own.

  The input goes from D to C dimensions, is replaced by the nearest of K entries
  and comes back to D. Small C makes the search cheap and keeps entries alive.

  Attributes:
    config: Sizes and policies.
    d_model: D.
    implementation: Of the search, see `ops.nearest_code`.
    dtype: Compute type of the projections; the search is in float32.

  Parameters:
    down/kernel: [D, C], up/kernel: [C, D]; none if `code_dim` is None.

  Collections:
    vq: `state`, a `codebook.CodebookState`. A forward pass with `vq` mutable
      adds to the sums of the step; `codebook.advance` does the rest.
  """

  config: QuantizerConfig
  d_model: int
  implementation: str
  dtype: jnp.dtype

  def setup(self):
    c = self.config
    self.width = self.d_model if c.code_dim is None else c.code_dim
    if c.code_dim is not None:
      self.down = nn.Dense(c.code_dim, use_bias=False, dtype=self.dtype)
      self.up = nn.Dense(self.d_model, use_bias=False, dtype=self.dtype)
    self.state = self.variable(
      'vq',
      'state',
      lambda: codebook.initial_state(
        self.make_rng('params'),
        c.codebook_size,
        self.width,
        decay=c.decay,
        reset_interval_steps=c.reset_interval_steps,
        reset_after_steps=c.reset_after_steps,
      ),
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
    y_BPC = x_BPD if self.config.code_dim is None else self.down(x_BPD)
    y_BPC = y_BPC.astype(jnp.float32)
    y_NC = lax.stop_gradient(y_BPC.reshape(-1, self.width))
    codes_N = nearest_code(
      y_NC, self.state.value.codebook_KC, implementation=self.implementation
    )
    codes_BP = codes_N.reshape(is_valid_BP.shape)
    entry_BPC = self.state.value.codebook_KC[codes_BP]
    if self.is_mutable_collection('vq') and not self.is_initializing():
      slots = is_valid_BP.shape[1]
      name_BP = row_B[:, None] * slots + jnp.arange(slots)
      self.state.value = codebook.observe(
        self.state.value,
        y_NC,
        codes_N,
        is_valid_BP.reshape(-1),
        name_BP.reshape(-1).astype(jnp.uint32),
      )
    # The value of the entry, the gradient of the input.
    straight_BPC = y_BPC + lax.stop_gradient(entry_BPC - y_BPC)
    return QuantizerOutput(
      codes_BP=codes_BP,
      vectors_BPD=self._to_model(straight_BPC),
      distance_BP=jnp.mean(jnp.square(y_BPC - entry_BPC), axis=-1),
    )

  def lookup(self, codes_BP: Array) -> Array:
    """Vectors of codes.

    Args:
      codes_BP: [B, P] int32 in 0..K-1.

    Returns:
      [B, P, D] of the compute type.
    """
    return self._to_model(self.state.value.codebook_KC[codes_BP])

  def _to_model(self, y_BPC: Array) -> Array:
    y_BPC = y_BPC.astype(self.dtype)
    return y_BPC if self.config.code_dim is None else self.up(y_BPC)
