"""Settings of one level and of its parts."""

import dataclasses
from typing import Annotated, Literal

from abstractinator.config.attention import (
  AttentionConfig,
  StackConfig,
  require_heads,
)
from abstractinator.config.quantizer import QuantizerConfig
from abstractinator.config.section import (
  Fraction,
  Limit,
  NonNegativeInt,
  NumLayers,
  PositiveInt,
  Section,
  Width,
  WidthOrNone,
  non_negative,
  positive,
)
from abstractinator.config.segmentation import SegmentationConfig

_LogVariance = Annotated[float, Limit(lambda x: abs(x) <= 40, '-40 to 40')]


@dataclasses.dataclass(frozen=True)
class EntropyHeadsConfig(Section):
  """Heads of an entropy model, and the entropy that the segmentation reads."""

  tie_to_embedding: bool
  gaussian_components: Annotated[int, non_negative(1024)]
  gaussian_layers: Annotated[int, non_negative(1024)]
  gaussian_detach: bool
  gaussian_log_variance_min: _LogVariance
  gaussian_log_variance_max: _LogVariance
  source: Literal['logit', 'gaussian']
  # Logits divided by a smaller temperature overflow float32.
  temperature: Annotated[
    float, Limit(lambda x: 1e-6 <= x <= 1e6, '>= 1e-6, at most 1e6')
  ]
  top_k: NonNegativeInt
  top_p: Annotated[float, Limit(lambda x: 0 < x <= 1, '0 < value <= 1')]

  def check(self) -> None:
    self.require(
      self.gaussian_layers == 0 or self.gaussian_components > 0,
      'gaussian_layers',
      '0 while gaussian_components is 0',
    )
    self.require(
      self.gaussian_log_variance_min < self.gaussian_log_variance_max,
      'gaussian_log_variance_min',
      f'below gaussian_log_variance_max ({self.gaussian_log_variance_max})',
    )
    if self.source == 'gaussian':
      self.require(
        self.gaussian_components > 0,
        'source',
        "'logit' while gaussian_components is 0",
      )
      self.require(self.top_k == 0, 'top_k', "0 with source 'gaussian'")
      self.require(self.top_p == 1, 'top_p', "1 with source 'gaussian'")


@dataclasses.dataclass(frozen=True)
class ExpanderConfig(Section):
  """The autoregressive decoder of a level, from codes to ids."""

  num_layers: NumLayers
  num_heads: Width
  ffn_dim: Width
  context: Literal['segment', 'window', 'full']
  window: PositiveInt
  lookback: Annotated[int, non_negative(4096)]
  ends: Literal['head', 'entropy']
  base: Literal['none', 'entropy_model']
  conditioning: Literal['none', 'top_lm']
  byte_dropout: Fraction
  code_dim: WidthOrNone
  distance: Literal['dot', 'squared']
  residual_conditioning: bool
  attention: AttentionConfig

  def check(self) -> None:
    self.require(
      self.distance == 'dot' or self.code_dim is not None,
      'distance',
      "'dot' while code_dim is None",
    )
    if self.base == 'entropy_model':
      # The entropy model has to run beside the expander in any case.
      self.require(
        self.ends == 'entropy', 'ends', "'entropy' with base 'entropy_model'"
      )
      self.require(
        self.code_dim is None, 'code_dim', "None with base 'entropy_model'"
      )


@dataclasses.dataclass(frozen=True)
class PoolingConfig(Section):
  """Learned-query attention over the ids of a segment."""

  num_heads: Width
  num_queries: Annotated[int, positive(1024)]


@dataclasses.dataclass(frozen=True)
class LevelConfig(Section):
  """One level: compressor, quantizer, expander, and the parts it takes over."""

  d_model: Width
  entropy_model: StackConfig
  entropy_heads: EntropyHeadsConfig
  segmentation: SegmentationConfig
  encoder: StackConfig
  encoder_context: Literal['document', 'segment']
  pooling: PoolingConfig
  quantizer: QuantizerConfig
  expander: ExpanderConfig
  freeze: bool
  freeze_entropy_model: bool
  load_entropy_model_from: str | None

  def check(self) -> None:
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
    if self.quantizer.kind == 'dictionary':
      self.require(
        self.pooling.num_queries == 1,
        'pooling.num_queries',
        "1 with quantizer.kind 'dictionary'",
      )
      self.require(
        self.segmentation.rule in ('stride', 'space')
        or self.freeze
        or self.freeze_entropy_model,
        'segmentation.rule',
        "'stride' or 'space' with quantizer.kind 'dictionary', whose segments"
        ' are counted before training; or True for freeze_entropy_model',
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
