"""Quantizer that looks segments up in a dictionary."""

import jax.numpy as jnp

from abstractinator.model.quantizers import QuantizerOutput, VectorQuantizer
from abstractinator.ops import dictionary
from abstractinator.types import Array


class DictionaryQuantizer(VectorQuantizer):
  """Dictionary: common segments own a code each, all others share the last.

  Codes follow from ids and do not learn; their entries are embeddings.

  Collections:
    vq: `table`, the segments of all codes but the last, [K - 1, L] int32; see
      `ops.dictionary` and `training.dictionary`, which fills it.
  """

  def setup(self) -> None:
    super().setup()
    self.table = self.variable(
      'vq',
      'table',
      dictionary.empty_table,
      self.config.codebook_size - 1,
      self.max_length,
    )

  def look_up(self, ids_BPL: Array) -> QuantizerOutput:
    """Returns the codes of segments, given their ids as `dictionary.find`."""
    codes_BP = dictionary.find(self.table.value, ids_BPL)
    zeros_BP = jnp.zeros(codes_BP.shape, jnp.float32)
    return QuantizerOutput(
      codes_BP=codes_BP,
      digits_BPM=codes_BP[..., None],
      vectors_BPD=self.lookup(codes_BP),
      distance_BP=zeros_BP,
      codebook_distance_BP=zeros_BP,
    )

  def spell(self, codes_BP: Array) -> Array:
    return dictionary.spell(self.table.value, codes_BP)

  def first_id_logits(self, logits_V: Array) -> Array:
    return dictionary.first_id_logits(self.table.value, logits_V)
