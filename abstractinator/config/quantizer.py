"""Settings of the quantizer of a level."""

import dataclasses
import math
from typing import Literal

from abstractinator.config.section import (
  Section,
  require,
  require_fraction,
  require_positive,
)

Kind = Literal['vq', 'rvq', 'fsq']
Codebook = Literal['ema', 'gradient']
Start = Literal['normal', 'kmeans']

# A code and the three special ids after the last one are int32.
_MAX_CODES = 2**31 - 4


@dataclasses.dataclass(frozen=True)
class QuantizerConfig(Section):
  """How vectors become codes; see `configs/default.py`."""

  kind: Kind
  code_dim: int | None
  codebook_size: int
  depth: int
  levels: tuple[int, ...]
  codebook: Codebook
  cosine: bool
  start: Start
  decay: float
  reset_interval_steps: int
  reset_after_steps: int
  reset_usage: float
  forbidden: tuple[int, ...]
  protected: tuple[int, ...]

  def __post_init__(self):
    require_positive(
      self, 'codebook_size', 'reset_interval_steps', 'reset_after_steps'
    )
    require_fraction(self, 'decay', 'reset_usage')
    if self.code_dim is not None:
      require_positive(self, 'code_dim')
    require(1 <= self.depth <= 4, 'depth', self.depth, '1 to 4')
    is_range = len(self.levels) > 0 and min(self.levels) > 1
    require(is_range, 'levels', self.levels, 'one number or more, each >= 2')
    for name in ('forbidden', 'protected'):
      codes = getattr(self, name)
      require(
        len(set(codes)) == len(codes)
        and all(0 <= code < self.codebook_size for code in codes),
        name,
        codes,
        f'different codes, each 0 to {self.codebook_size - 1}',
      )
    require(
      len(self.forbidden) < self.codebook_size,
      'forbidden',
      self.forbidden,
      'fewer codes than codebook_size',
    )
    if self.kind == 'fsq':
      for name in ('cosine', 'forbidden', 'protected'):
        value = getattr(self, name)
        require(not value, name, value, "nothing, where kind is 'fsq'")
      for name, only in (('codebook', 'ema'), ('start', 'normal')):
        value = getattr(self, name)
        require(value == only, name, value, f"{only!r}, where kind is 'fsq'")
    require(
      self.codebook == 'ema' or not self.protected,
      'protected',
      self.protected,
      "nothing, where codebook is 'gradient'",
    )
    require(
      self.codebook == 'ema' or self.start == 'normal',
      'start',
      self.start,
      "'normal', where codebook is 'gradient'",
    )
    require(
      self.num_codes <= _MAX_CODES,
      'levels' if self.kind == 'fsq' else 'codebook_size',
      self.levels if self.kind == 'fsq' else self.codebook_size,
      f'at most {_MAX_CODES} codes in all, not {self.num_codes}',
    )

  @property
  def stage_sizes(self) -> tuple[int, ...]:
    """Values of each digit of a code, [M]; the first counts least."""
    return {
      'vq': (self.codebook_size,),
      'rvq': (self.codebook_size,) * self.depth,
      'fsq': self.levels,
    }[self.kind]

  @property
  def num_stages(self) -> int:
    """M."""
    return len(self.stage_sizes)

  @property
  def num_codes(self) -> int:
    """Codes there are: the product of the sizes of the stages."""
    return math.prod(self.stage_sizes)
