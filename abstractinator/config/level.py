"""Settings of one level."""

import dataclasses

from abstractinator.config.attention import StackConfig, require_heads
from abstractinator.config.entropy import EntropyHeadsConfig
from abstractinator.config.expander import ExpanderConfig
from abstractinator.config.quantizer import QuantizerConfig
from abstractinator.config.section import Section, require, require_positive
from abstractinator.config.segmentation import SegmentationConfig


@dataclasses.dataclass(frozen=True)
class PoolingConfig(Section):
  """Learned-query attention over a segment."""

  num_heads: int
  num_queries: int

  def __post_init__(self):
    require_positive(self, 'num_heads', 'num_queries')


@dataclasses.dataclass(frozen=True)
class LevelConfig(Section):
  """One level: compressor, quantizer, expander."""

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

  def __post_init__(self):
    require_positive(self, 'd_model')
    for name in ('entropy_model', 'encoder', 'pooling', 'expander'):
      section = getattr(self, name)
      attention = getattr(section, 'attention', None)
      require_heads(name, section.num_heads, self.d_model, attention)
    for name in ('freeze_entropy_model', 'load_entropy_model_from'):
      value = getattr(self, name)
      allowed = 'nothing while freeze is True, which is about the whole level'
      require(not (self.freeze and value), name, value, allowed)
    require(
      self.segmentation.rule != 'equal_information'
      or self.entropy_heads.source == 'logit',
      'entropy_heads.source',
      self.entropy_heads.source,
      'logit with segmentation.rule equal_information, which adds up bits',
    )

  @property
  def codebook_width(self) -> int | None:
    """C of the codebooks of the quantizer; None if it has none."""
    c = self.quantizer
    if c.kind == 'fsq':
      return None
    return self.d_model if c.code_dim is None else c.code_dim

  def num_codes(self, sequence_length: int) -> int:
    """U, codes of a row of `sequence_length` ids: ids of the next level."""
    slots = self.segmentation.num_slots(sequence_length)
    return slots * self.pooling.num_queries

  def max_documents(self, sequence_length: int) -> int:
    """Documents a row may touch so that its segments find slots.

    Each document can cost one segment beyond what its length needs.
    """
    needed = -(-sequence_length // self.segmentation.max_length)
    return self.segmentation.num_slots(sequence_length) - needed
