"""One level: ids to codes and back."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.config import LevelConfig
from abstractinator.model.compressor import (
  Below,
  CompressorOutput,
  SegmentCompressor,
)
from abstractinator.model.expander import DecoderOnlyExpanderRVQ, ExpanderOutput
from abstractinator.ops import calibration, codebook
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.sampling import hidden_ids
from abstractinator.types import Batch, PyTree


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

  A level is over bytes, or over the codes of a level below, its child: then it
  is given `Below`, and the expander predicts the digits of the child's codes.
  Codes have no EOS: a document ends with the last code that is there of it.

  Attributes:
    config: Sizes.
    num_ids: Ordinary ids; the specials come after them.
    implementation: Of the ops.
    dtype: Compute type.
    child: Config of the level whose codes the ids are; None for bytes.
  """

  config: LevelConfig
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype
  child: LevelConfig | None = None

  def setup(self):
    common = dict(implementation=self.implementation, dtype=self.dtype)
    self.compressor = SegmentCompressor(
      self.config, self.num_ids, **common, child=self.child
    )
    if self.child is None:
      self.expander = DecoderOnlyExpanderRVQ(
        self.config, (self.num_ids,), **common
      )
    else:
      self.expander = _code_expander(self.config, self.child, **common)

  def __call__(self, batch: Batch, below: Below | None = None) -> LevelOutput:
    """Compresses rows and predicts them back, teacher-forced.

    With an rng `byte_dropout`, as in training, a part of the ids is hidden from
    the expander; see `ExpanderConfig`.

    Args:
      batch: Rows of ids.
      below: What comes with ids that are codes.

    Returns:
      All of it.
    """
    compressed = self.compress(batch, below)
    hidden_BS, rate = None, self.config.expander.byte_dropout
    if rate > 0 and self.has_rng('byte_dropout'):
      hidden_BS = hidden_ids(
        self.make_rng('byte_dropout'),
        batch.row_B,
        batch.ids_BS.shape[1],
        rate,
      )
    expanded = self.expander(
      batch.ids_BS,
      batch.document_BS,
      compressed.segments,
      compressed.quantized.vectors_BPD,
      hidden_BS,
      None if below is None else below.codebooks,
    )
    return LevelOutput(compressed=compressed, expanded=expanded)

  def compress(
    self, batch: Batch, below: Below | None = None
  ) -> CompressorOutput:
    """Ids to codes."""
    return self.compressor(batch.ids_BS, batch.document_BS, batch.row_B, below)


def _code_expander(
  config: LevelConfig, child: LevelConfig, **kwargs
) -> DecoderOnlyExpanderRVQ:
  """An expander into codes, in the space of their codebooks if there are."""
  width = child.codebook_width
  if width is not None:
    expander = dataclasses.replace(config.expander, code_dim=width)
    config = dataclasses.replace(config, expander=expander)
  return DecoderOnlyExpanderRVQ(
    config,
    child.quantizer.stage_sizes,
    **kwargs,
    has_tables=width is None,
    has_eos=False,
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
