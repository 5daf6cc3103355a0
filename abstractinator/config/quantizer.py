"""Settings of the quantizer of a level."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from abstractinator.config.section import (
  Fraction,
  Limit,
  PositiveFloatOrNone,
  PositiveInt,
  Section,
  WidthOrNone,
  positive,
)

QuantizerKind = Literal['vq', 'rvq', 'fsq', 'dictionary']

# Codes and the three special ids, whose values follow the last code, are int32.
_MAX_CODES = 2**31 - 4


@dataclasses.dataclass(frozen=True)
class QuantizerConfig(Section):
  """The quantizer: its kind, its codebooks and how their entries learn."""

  kind: QuantizerKind
  code_dim: WidthOrNone
  codebook_size: Annotated[int, positive(2**24)]
  depth: Annotated[int, Limit(lambda x: 1 <= x <= 4, '1 to 4')]
  levels: tuple[int, ...]
  codebook: Literal['ema', 'gradient']
  cosine: bool
  rate_temperature: PositiveFloatOrNone
  start: Literal['normal', 'kmeans']
  decay: Fraction
  reset_interval_steps: PositiveInt
  reset_after_steps: PositiveInt
  reset_usage: Fraction
  forbidden: tuple[int, ...]
  protected: tuple[int, ...]

  def check(self) -> None:
    self.require(
      len(self.levels) > 0 and min(self.levels) > 1,
      'levels',
      'one number or more, each >= 2',
    )
    for name in ('forbidden', 'protected'):
      codes = getattr(self, name)
      self.require(
        len(set(codes)) == len(codes)
        and all(0 <= code < self.codebook_size for code in codes),
        name,
        f'different codes, each 0 to {self.codebook_size - 1}',
      )
    self.require(
      len(self.forbidden) < self.codebook_size,
      'forbidden',
      'fewer codes than codebook_size',
    )
    if self.kind == 'fsq':
      self._require_values(
        "kind 'fsq'",
        codebook='ema',
        cosine=False,
        start='normal',
        forbidden=(),
        protected=(),
      )
    if self.kind == 'dictionary':
      self._require_values(
        "kind 'dictionary'", start='normal', forbidden=(), protected=()
      )
      self.require(
        self.codebook_size > 1,
        'codebook_size',
        "at least 2 with kind 'dictionary': a segment and the escape",
      )
    if self.codebook == 'gradient':
      self._require_values("codebook 'gradient'", start='normal', protected=())
    self.require(
      self.num_codes <= _MAX_CODES,
      'levels' if self.kind == 'fsq' else 'codebook_size',
      f'at most {_MAX_CODES} codes in all, not {self.num_codes}',
    )

  def _require_values(self, case: str, **values: Any) -> None:
    """Requires settings to have the one value that a case leaves to them."""
    for name, value in values.items():
      ok = getattr(self, name) == value
      self.require(ok, name, f'{value!r} with {case}')

  @property
  def stage_sizes(self) -> tuple[int, ...]:
    """Number of values of each of the M digits, least significant first."""
    return {
      'vq': (self.codebook_size,),
      'rvq': (self.codebook_size,) * self.depth,
      'fsq': self.levels,
      'dictionary': (self.codebook_size,),
    }[self.kind]

  @property
  def has_learned_entries(self) -> bool:
    """True if the entries of codebooks are parameters."""
    return self.codebook == 'gradient' or self.kind == 'dictionary'

  @property
  def num_codes(self) -> int:
    """Number of different codes: the product of `stage_sizes`."""
    return math.prod(self.stage_sizes)
