"""The small language model of a level, whose uncertainty cuts segments."""

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.config import StackConfig
from abstractinator.modules import layers
from abstractinator.modules.blocks import Stack
from abstractinator.ops.segmentation import document_starts
from abstractinator.types import Array, Special


class EntropyModel(nn.Module):
  """Predicts each id from those before it.

  Attributes:
    config: Sizes of the stack.
    d_model: D.
    num_ids: Ordinary ids; the specials come after them.
    implementation: Of the attention op.
    dtype: Compute type.
  """

  config: StackConfig
  d_model: int
  num_ids: int
  implementation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, ids_BS: Array, document_BS: Array) -> Array:
    """Logits of each id given the ids before it in its document.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32, -1 on padding.

    Returns:
      [B, S, V] float32.
    """
    vocab = self.num_ids + len(Special)
    fed_BS = layers.shift_right(
      ids_BS, document_starts(document_BS), self.num_ids + Special.BOS
    )
    x_BSD = layers.embed(vocab, self.d_model, self.dtype, 'embed')(fed_BS)
    x_BSD = Stack(
      self.config, self.d_model, self.implementation, self.dtype, name='stack'
    )(x_BSD, document_BS)
    logits_BSV = layers.logits(vocab, self.dtype, 'head')(x_BSD)
    return logits_BSV.astype(jnp.float32)
