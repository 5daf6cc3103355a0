"""Settings of one level."""

import dataclasses

from abstractinator.config.attention import StackConfig, require_heads
from abstractinator.config.entropy import EntropyHeadsConfig
from abstractinator.config.expander import ExpanderConfig
from abstractinator.config.quantizer import QuantizerConfig
from abstractinator.config.section import Section
from abstractinator.config.segmentation import SegmentationConfig


@dataclasses.dataclass(frozen=True)
class PoolingConfig(Section):
  """Learned-query attention over the ids of a segment."""

  num_heads: int
  num_queries: int

  def __post_init__(self) -> None:
    self.require_positive('num_heads', 'num_queries')


@dataclasses.dataclass(frozen=True)
class LevelConfig(Section):
  """One level: compressor, quantizer, expander, and the parts it takes over."""

  d_model: int
  entropy_model: StackConfig
  entropy_heads: EntropyHeadsConfig
  segmentation: SegmentationConfig
  encoder: StackConfig
  pooling: PoolingConfig
  quantizer: QuantizerConfig
  expander: ExpanderConfig
  freeze: bool
  freeze_entropy_model: bool
  load_entropy_model_from: str | None

  def __post_init__(self) -> None:
    self.require_positive('d_model')
    for name in ('entropy_model', 'encoder', 'pooling', 'expander'):
      require_heads(self, name, self.d_model)
    for name, unset in (
      ('freeze_entropy_model', False),
      ('load_entropy_model_from', None),
    ):
      self.require(
        not (self.freeze and getattr(self, name)),
        name,
        f'{unset} while freeze is True, which concerns the whole level',
      )
    self.require(
      self.segmentation.rule != 'equal_information'
      or self.entropy_heads.source == 'logit',
      'entropy_heads.source',
      "'logit' with segmentation.rule 'equal_information', which adds up bits",
    )

  @property
  def codebook_width(self) -> int | None:
    """C, the width of codebook entries; None with kind 'fsq'."""
    c = self.quantizer
    if c.kind == 'fsq':
      return None
    return self.d_model if c.code_dim is None else c.code_dim

  def num_codes(self, sequence_length: int) -> int:
    """Returns U, the code slots of a row of `sequence_length` ids.

    The level above has rows of U ids.
    """
    slots = self.segmentation.num_slots(sequence_length)
    return slots * self.pooling.num_queries

  def max_documents(self, sequence_length: int) -> int:
    """Returns how many documents a row may touch and not run out of slots.

    Every document may end in a segment shorter than `max_length`, and so take
    one slot more than its length needs.
    """
    needed = -(-sequence_length // self.segmentation.max_length)
    return self.segmentation.num_slots(sequence_length) - needed
