"""One level: ids to codes and back."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.config import LevelConfig
from abstractinator.modules.expander import (
  DecoderOnlyExpanderRVQ,
  ExpanderOutput,
)
from abstractinator.modules.segment_compressor import (
  CompressorOutput,
  SegmentCompressor,
)
from abstractinator.ops import calibration, codebook
from abstractinator.types import Array, Batch, PyTree


@flax.struct.dataclass
class LevelOutput:
  """What a level makes of its ids.

  Attributes:
    compressed: From ids to codes.
    expanded: From codes back to ids, teacher-forced.
  """

  compressed: CompressorOutput
  expanded: ExpanderOutput


class Abstractinator(nn.Module):
  """A compressor and the expander that undoes it.

  Attributes:
    config: Sizes.
    num_ids: Ordinary ids; the specials come after them.
    implementation: Of the ops.
    dtype: Compute type.
  """

  config: LevelConfig
  num_ids: int
  implementation: str
  dtype: jnp.dtype

  def setup(self):
    args = (self.config, self.num_ids, self.implementation, self.dtype)
    self.compressor = SegmentCompressor(*args)
    self.expander = DecoderOnlyExpanderRVQ(*args)

  def __call__(self, batch: Batch) -> LevelOutput:
    """Compresses rows and predicts them back, teacher-forced."""
    compressed = self.compress(batch)
    expanded = self.expander(
      batch.ids_BS,
      batch.document_BS,
      compressed.segments,
      compressed.quantized.vectors_BPD,
    )
    return LevelOutput(compressed=compressed, expanded=expanded)

  def compress(self, batch: Batch) -> CompressorOutput:
    """Ids to codes."""
    return self.compressor(batch.ids_BS, batch.document_BS, batch.row_B)

  def decode(self, codes_BU: Array, lowest_BP: Array) -> tuple[Array, Array]:
    """Codes to ids; see `DecoderOnlyExpanderRVQ.decode`."""
    return self.expander.decode(
      self.compressor.quantizer.lookup(codes_BU), lowest_BP
    )


_ADVANCE = {
  codebook.CodebookState: codebook.advance,
  calibration.ThresholdState: calibration.advance,
}


def advance(collections: PyTree) -> PyTree:
  """Ends an optimizer step for every state in `vq` and `calibration`.

  Args:
    collections: Mutable collections after the forward passes of the step.

  Returns:
    The collections of the next step.
  """
  return jax.tree.map(
    lambda state: _ADVANCE[type(state)](state),
    collections,
    is_leaf=lambda node: type(node) in _ADVANCE,
  )
