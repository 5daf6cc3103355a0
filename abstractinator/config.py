"""Every setting of a run, as frozen dataclasses checked on construction.

There are no defaults here: `configs/default.py` spells each value once, other
config files edit it, and `train.py` hands the result to `RunConfig.from_dict`.
"""

import dataclasses
import itertools
from typing import Literal

from abstractinator.config_attention import StackConfig, require_heads
from abstractinator.config_entropy import EntropyHeadsConfig
from abstractinator.config_expander import ExpanderConfig
from abstractinator.config_quantizer import QuantizerConfig
from abstractinator.config_section import (
  Section,
  require,
  require_fraction,
  require_positive,
)
from abstractinator.config_segmentation import SegmentationConfig
from abstractinator.config_top_lm import TopLMConfig

Implementation = Literal['auto', 'reference', 'xla']
Dtype = Literal['float32', 'bfloat16']


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
  """What to read. See `configs/default.py` for units."""

  train: str
  validation: str
  validation_fraction: float
  sequence_length: int
  batch_size: int
  read_threads: int
  prefetch_batches: int

  def __post_init__(self):
    require_positive(self, 'sequence_length', 'batch_size', 'prefetch_batches')
    require_fraction(self, 'validation_fraction')
    require(self.read_threads >= 0, 'read_threads', self.read_threads, '>= 0')
    require(
      bool(self.validation) or self.validation_fraction > 0,
      'validation_fraction',
      self.validation_fraction,
      'above 0 when data.validation is empty',
    )


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

  def __post_init__(self):
    require_positive(self, 'd_model')
    for name in ('entropy_model', 'encoder', 'pooling', 'expander'):
      section = getattr(self, name)
      attention = getattr(section, 'attention', None)
      require_heads(name, section.num_heads, self.d_model, attention)
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


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
  """The pyramid, bottom first."""

  levels: tuple[LevelConfig, ...]
  top_lm: TopLMConfig | None
  dtype: Dtype
  implementation: Implementation

  def __post_init__(self):
    require(bool(self.levels), 'levels', len(self.levels), 'at least 1 level')
    for i, (child, level) in enumerate(itertools.pairwise(self.levels), 1):
      _check_stacked(f'levels[{i}]', level, child)

  def sequence_lengths(self, sequence_length: int) -> tuple[int, ...]:
    """S of each level, for rows of `sequence_length` bytes."""
    sizes = [sequence_length]
    for level in self.levels[:-1]:
      sizes.append(level.num_codes(sizes[-1]))
    return tuple(sizes)

  def max_documents(self, sequence_length: int) -> int:
    """Documents that a row may touch, see `LevelConfig.max_documents`."""
    sizes = self.sequence_lengths(sequence_length)
    return min(
      level.max_documents(size)
      for level, size in zip(self.levels, sizes, strict=True)
    )


def _check_stacked(name: str, level: LevelConfig, child: LevelConfig) -> None:
  """Raises ValueError if a level cannot stand on another one's codes."""
  rule = level.segmentation.rule
  allowed = 'a rule that is not about bytes, above the first level'
  require(rule != 'space', f'{name}.segmentation.rule', rule, allowed)
  # Nothing else says where documents end: codes have no EOS.
  ends = level.expander.ends
  allowed = 'head, above the first level'
  require(ends == 'head', f'{name}.expander.ends', ends, allowed)
  # Codes are compared with what embeds them.
  is_tied = level.entropy_heads.tie_to_embedding
  setting = f'{name}.entropy_heads.tie_to_embedding'
  require(is_tied, setting, is_tied, 'True, above the first level')
  width = child.codebook_width
  if width is not None:
    require(
      level.expander.code_dim in (None, width),
      f'{name}.expander.code_dim',
      level.expander.code_dim,
      f'None or {width}, the width of the codebooks of the level below',
    )


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
  """Weights of the terms of the objective; see `losses.terms`."""

  entropy_model: float
  gaussian: float
  expander: float
  end: float
  commitment: float
  codebook: float
  top_lm_code: float
  top_lm_vector: float
  top_lm_end: float

  def __post_init__(self):
    for name, weight in dataclasses.asdict(self).items():
      require(weight >= 0, name, weight, '>= 0')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
  """AdamW with warm-up and cosine decay."""

  learning_rate: float
  final_fraction: float
  warmup_steps: int
  weight_decay: float
  beta1: float
  beta2: float
  clip_norm: float

  def __post_init__(self):
    require_positive(self, 'learning_rate', 'clip_norm')
    require_fraction(self, 'beta1', 'beta2')
    require(
      0 <= self.final_fraction <= 1,
      'final_fraction',
      self.final_fraction,
      '0 to 1',
    )
    for name in ('warmup_steps', 'weight_decay'):
      require(getattr(self, name) >= 0, name, getattr(self, name), '>= 0')


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
  """Devices along each mesh axis; -1 on one axis takes what is left."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      require(size > 0 or size == -1, name, size, 'a positive number or -1')
    one = list(sizes.values()).count(-1) <= 1
    require(one, 'tensor', self.tensor, '-1 on one axis')


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
  """A whole run."""

  seed: int
  max_steps: int | None
  num_epochs: float
  log_interval: int
  eval_interval: int
  eval_batches: int
  final_eval_batches: int | None
  checkpoint_interval: int
  max_to_keep: int
  data: DataConfig
  model: ModelConfig
  loss: LossConfig
  optimizer: OptimizerConfig
  mesh: MeshConfig

  def __post_init__(self):
    require(self.seed >= 0, 'seed', self.seed, '>= 0')
    require_positive(
      self,
      'num_epochs',
      'log_interval',
      'eval_interval',
      'eval_batches',
      'checkpoint_interval',
      'max_to_keep',
    )
    # So that a resumed run logs the same windows as one never stopped.
    require(
      self.checkpoint_interval % self.log_interval == 0,
      'checkpoint_interval',
      self.checkpoint_interval,
      f'a multiple of log_interval ({self.log_interval})',
    )
    sizes = self.model.sequence_lengths(self.data.sequence_length)
    for i, (level, size) in enumerate(
      zip(self.model.levels, sizes, strict=True)
    ):
      require(
        level.max_documents(size) >= 1,
        f'model.levels[{i}].segmentation.capacity_length',
        level.segmentation.capacity_length,
        f'smaller, so that rows of {size} ids have a slot to spare',
      )
      require(
        self.loss.gaussian > 0 or level.entropy_heads.source != 'gaussian',
        'loss.gaussian',
        self.loss.gaussian,
        f"above 0 while model.levels[{i}].entropy_heads.source is 'gaussian'",
      )
      require(
        self.loss.codebook > 0 or level.quantizer.codebook != 'gradient',
        'loss.codebook',
        self.loss.codebook,
        f"above 0 while model.levels[{i}].quantizer.codebook is 'gradient'",
      )
    require(
      self.loss.gaussian == 0
      or any(c.entropy_heads.gaussian_components for c in self.model.levels),
      'loss.gaussian',
      self.loss.gaussian,
      '0 while entropy_heads.gaussian_components of all model.levels is 0',
    )
    for field in ('max_steps', 'final_eval_batches'):
      if getattr(self, field) is not None:
        require_positive(self, field)
