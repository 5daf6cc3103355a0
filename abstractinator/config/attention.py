"""Settings of attention and of the transformer stacks built on it."""

import dataclasses
from typing import Literal

from abstractinator.config.section import (
  MAX_WIDTH,
  NumLayers,
  PositiveOrNone,
  Section,
  Width,
)


@dataclasses.dataclass(frozen=True)
class AttentionConfig(Section):
  """Attention of a stack: regular or latent, with the widths of the latter."""

  form: Literal['regular', 'mla']
  kv_dim: int | None
  query_dim: int | None
  retrieval_dim: int | None

  def check(self) -> None:
    for name in ('kv_dim', 'query_dim', 'retrieval_dim'):
      value = getattr(self, name)
      if self.form == 'mla':
        ok = value is not None and 0 < value <= MAX_WIDTH
        self.require(
          ok, name, f"a positive number, at most {MAX_WIDTH}, with form 'mla'"
        )
      else:
        self.require(value is None, name, f'None with form {self.form!r}')
    self.require(
      (self.retrieval_dim or 0) % 2 == 0,
      'retrieval_dim',
      'an even number, for rotary positions',
    )


@dataclasses.dataclass(frozen=True)
class StackConfig(Section):
  """A causal transformer stack."""

  num_layers: NumLayers
  num_heads: Width
  window: PositiveOrNone
  ffn_dim: Width
  attention: AttentionConfig


def require_heads(parent: Section, name: str, d_model: int) -> None:
  """Requires the attention heads of a section to divide the model width.

  Args:
    parent: Section that holds the one with the heads.
    name: Field of `parent`: a section with `num_heads`, and with `attention`
      where queries and keys have positions.
    d_model: D, the width that the heads divide.

  Raises:
    ValueError: If H does not divide D, or D / H is odd with regular attention,
      whose rotary positions turn pairs of numbers.
  """
  section = getattr(parent, name)
  num_heads = section.num_heads
  path = f'{name}.num_heads'
  parent.require(
    d_model % num_heads == 0, path, f'a divisor of d_model ({d_model})'
  )
  attention = getattr(section, 'attention', None)
  if attention is not None and attention.form == 'regular':
    parent.require(
      d_model // num_heads % 2 == 0,
      path,
      f'd_model / num_heads even, for rotary positions (d_model is {d_model})',
    )
