"""Settings of the pyramid: how levels stack."""

import dataclasses
import itertools
from typing import Literal

from abstractinator.config.implementation import ImplementationConfig
from abstractinator.config.level import LevelConfig
from abstractinator.config.section import Section, require
from abstractinator.config.top_lm import TopLMConfig

Dtype = Literal['float32', 'bfloat16']


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
  """The pyramid, bottom first."""

  levels: tuple[LevelConfig, ...]
  top_lm: TopLMConfig | None
  dtype: Dtype
  implementation: ImplementationConfig

  def __post_init__(self):
    require(bool(self.levels), 'levels', len(self.levels), 'at least 1 level')
    for i, (child, level) in enumerate(itertools.pairwise(self.levels), 1):
      _check_stacked(f'levels[{i}]', level, child)
    require(
      self.top_lm is not None or not self.levels[-1].freeze,
      f'levels[{len(self.levels) - 1}].freeze',
      True,
      'False without a top_lm: nothing else would be left to learn',
    )

  def sequence_lengths(self, sequence_length: int) -> tuple[int, ...]:
    """S of each level, for rows of `sequence_length` bytes."""
    sizes = [sequence_length]
    for level in self.levels[:-1]:
      sizes.append(level.num_codes(sizes[-1]))
    return tuple(sizes)

  def num_top_codes(self, sequence_length: int) -> int:
    """Codes of the last level that a row of so many bytes has room for."""
    sizes = self.sequence_lengths(sequence_length)
    return self.levels[-1].num_codes(sizes[-1])

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
  freeze = level.freeze
  allowed = 'False above a level that learns, whose codes change their meaning'
  require(child.freeze or not freeze, f'{name}.freeze', freeze, allowed)
  # That of codes needs the codebooks of its own run.
  source = level.load_entropy_model_from
  setting = f'{name}.load_entropy_model_from'
  require(source is None, setting, source, 'None, above the first level')
  freeze = level.freeze_entropy_model
  setting = f'{name}.freeze_entropy_model'
  require(not freeze, setting, freeze, 'False, above the first level')
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
