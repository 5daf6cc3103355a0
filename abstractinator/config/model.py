"""Settings of the pyramid: a stack of levels and a top language model."""

import dataclasses
import itertools
from typing import Literal, Self

from abstractinator.config.attention import StackConfig, require_heads
from abstractinator.config.level import LevelConfig
from abstractinator.config.section import Section, Width

_MAX_LEVELS = 16


@dataclasses.dataclass(frozen=True)
class ImplementationConfig(Section):
  """Implementation of each op, and the execution of stacks of blocks.

  `ops.implementation` says which platform supports which implementation.
  """

  attention: Literal[
    'auto',
    'reference',
    'xla',
    'pallas',
    'pallas_interpret',
    'mosaic_gpu',
    'cudnn',
  ]
  segment_pool: Literal[
    'auto', 'reference', 'xla', 'pallas', 'pallas_interpret'
  ]
  segment_cross: Literal['auto', 'reference', 'gather', 'halo']
  nearest_code: Literal['auto', 'reference', 'xla']
  remat: Literal['none', 'dots', 'blocks']
  scan_layers: bool

  @classmethod
  def everywhere(cls, name: Literal['auto', 'reference', 'xla']) -> Self:
    """Returns one implementation for all ops, and neither remat nor scan.

    Args:
      name: Implementation of each op; 'xla' is called 'gather' for
        `segment_cross`.
    """
    cross = 'gather' if name == 'xla' else name
    return cls(name, name, cross, name, remat='none', scan_layers=False)


@dataclasses.dataclass(frozen=True)
class TopLMConfig(Section):
  """A `CodeSequenceTransformer`: its mode, width and stack."""

  mode: Literal['discrete', 'continuous']
  d_model: Width
  stack: StackConfig
  inputs: Literal['codes', 'segments']
  base: Literal['none', 'entropy_model']
  expand: bool

  def check(self) -> None:
    require_heads(self, 'stack', self.d_model)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
  """The levels of a pyramid, bottom first, and its top language model."""

  levels: tuple[LevelConfig, ...]
  top_lm: TopLMConfig | None
  dtype: Literal['float32', 'bfloat16']
  implementation: ImplementationConfig

  def check(self) -> None:
    is_counted = 1 <= len(self.levels) <= _MAX_LEVELS
    self.require(
      is_counted, 'levels', f'at least 1 level, at most {_MAX_LEVELS}'
    )
    for i, (child, level) in enumerate(itertools.pairwise(self.levels), 1):
      self._check_upper_level(f'levels[{i}]', level, child)
    self._check_predictions()
    self.require(
      self.top_lm is not None or not self.levels[-1].freeze,
      f'levels[{len(self.levels) - 1}].freeze',
      'False without a top_lm: no part of the model would learn',
    )

  def _check_predictions(self) -> None:
    """Requires settings about predictions of codes to fit each other."""
    top, last = self.levels[-1], f'levels[{len(self.levels) - 1}]'
    for i, level in enumerate(self.levels):
      name, is_top = f'levels[{i}]', i == len(self.levels) - 1
      self.require(
        i == 0 or level.expander.base == 'none',
        f'{name}.expander.base',
        "'none' above the first level",
      )
      self.require(
        level.expander.conditioning == 'none'
        or (is_top and self.top_lm is not None),
        f'{name}.expander.conditioning',
        "'none' below the last level, and without a top_lm",
      )
      is_predicted = not is_top or (
        self.top_lm is not None and self.top_lm.mode == 'discrete'
      )
      self.require(
        level.quantizer.rate_temperature is None or is_predicted,
        f'{name}.quantizer.rate_temperature',
        "None without a top_lm of mode 'discrete', which predicts the codes",
      )
    self.require(
      top.quantizer.kind != 'dictionary'
      or self.top_lm is None
      or (self.top_lm.mode == 'discrete' and not self.top_lm.expand),
      f'{last}.quantizer.kind',
      "any but 'dictionary' with a top_lm of mode 'continuous' or with expand"
      ' True, whose vectors are no entries of it',
    )
    self.require(
      self.top_lm is None
      or self.top_lm.base == 'none'
      or (len(self.levels) == 1 and top.expander.ends == 'entropy'),
      'top_lm.base',
      "'none' with more than one level or without expander.ends 'entropy'",
    )
    if self.streams:
      for name, value, only in (
        ('pooling.num_queries', top.pooling.num_queries, 1),
        ('expander.lookback', top.expander.lookback, 0),
      ):
        self.require(
          value == only,
          f'{last}.{name}',
          f"{only} with expander.conditioning 'top_lm', top_lm.inputs"
          " 'segments' or top_lm.base 'entropy_model'",
        )

  @property
  def streams(self) -> bool:
    """True if top codes are predicted while their level decodes.

    The prediction of a code then depends on the decoded segments before it, or
    the ids of a segment on the prediction of its code.
    """
    return self.top_lm is not None and (
      self.levels[-1].expander.conditioning == 'top_lm'
      or self.top_lm.inputs == 'segments'
      or self.top_lm.base == 'entropy_model'
    )

  def _check_upper_level(
    self, name: str, level: LevelConfig, child: LevelConfig
  ) -> None:
    """Requires a level to fit the codes of `child`, the level below it."""
    self.require(
      level.segmentation.rule != 'space',
      f'{name}.segmentation.rule',
      "any but 'space' above the first level, whose ids are not bytes",
    )
    self.require(
      level.quantizer.kind != 'dictionary',
      f'{name}.quantizer.kind',
      "any but 'dictionary' above the first level",
    )
    self.require(
      child.freeze or not level.freeze,
      f'{name}.freeze',
      'False above a level that learns, whose codes change their meaning',
    )
    # An entropy model over codes depends on the codebooks of its own run.
    self.require(
      level.load_entropy_model_from is None,
      f'{name}.load_entropy_model_from',
      'None above the first level',
    )
    self.require(
      not level.freeze_entropy_model,
      f'{name}.freeze_entropy_model',
      'False above the first level',
    )
    # Codes have no EOS: the end of a document is known from this head alone.
    self.require(
      level.expander.ends == 'head',
      f'{name}.expander.ends',
      "'head' above the first level",
    )
    # Codes are embedded by the codebooks below, and predicted by comparison.
    self.require(
      level.entropy_heads.tie_to_embedding,
      f'{name}.entropy_heads.tie_to_embedding',
      'True above the first level',
    )
    width = child.codebook_width
    self.require(
      width is None or level.expander.code_dim in (None, width),
      f'{name}.expander.code_dim',
      f'None or {width}, the width of the codebooks of the level below',
    )

  def sequence_lengths(self, sequence_length: int) -> tuple[int, ...]:
    """Returns S of each level for rows of `sequence_length` bytes."""
    sizes = [sequence_length]
    for level in self.levels[:-1]:
      sizes.append(level.num_codes(sizes[-1]))
    return tuple(sizes)

  def num_top_codes(self, sequence_length: int) -> int:
    """Returns U of the last level for rows of `sequence_length` bytes."""
    sizes = self.sequence_lengths(sequence_length)
    return self.levels[-1].num_codes(sizes[-1])

  def max_documents(self, sequence_length: int) -> int:
    """Returns how many documents a row of `sequence_length` bytes may touch.

    It is the least `LevelConfig.max_documents` of the levels.
    """
    sizes = self.sequence_lengths(sequence_length)
    return min(
      level.max_documents(size)
      for level, size in zip(self.levels, sizes, strict=True)
    )
