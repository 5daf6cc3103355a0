"""Settings of attention and of the stacks built on it."""

import dataclasses
from typing import Literal

from abstractinator.config.section import Section, require, require_positive

Form = Literal['regular', 'mla']


@dataclasses.dataclass(frozen=True)
class AttentionConfig(Section):
  """How queries, keys and values are made; see `modules.blocks.FORMS`."""

  form: Form
  kv_dim: int | None
  query_dim: int | None
  retrieval_dim: int | None

  def __post_init__(self):
    for name in ('kv_dim', 'query_dim', 'retrieval_dim'):
      value = getattr(self, name)
      if self.form == 'mla':
        ok = value is not None and value > 0
        require(ok, name, value, "a positive number with form 'mla'")
      else:
        require(value is None, name, value, f'None with form {self.form!r}')
    if self.form == 'mla':
      require(
        self.retrieval_dim % 2 == 0,
        'retrieval_dim',
        self.retrieval_dim,
        'an even number, for rotary positions',
      )


@dataclasses.dataclass(frozen=True)
class StackConfig(Section):
  """A causal transformer stack."""

  num_layers: int
  num_heads: int
  window: int | None
  ffn_dim: int
  attention: AttentionConfig

  def __post_init__(self):
    require_positive(self, 'num_layers', 'num_heads', 'ffn_dim')
    if self.window is not None:
      require_positive(self, 'window')


def require_heads(
  name: str, num_heads: int, d_model: int, attention: AttentionConfig | None
) -> None:
  """Requires heads to divide the width, and rotary pairs to exist.

  Args:
    name: Of the section the heads belong to.
    num_heads: H.
    d_model: D.
    attention: Of the section; None where there are no positions.

  Raises:
    ValueError: If the heads do not fit.
  """
  field = f'{name}.num_heads'
  allowed = f'a divisor of d_model ({d_model})'
  require(d_model % num_heads == 0, field, num_heads, allowed)
  if attention is not None and attention.form == 'regular':
    require(
      d_model // num_heads % 2 == 0,
      field,
      num_heads,
      f'd_model / num_heads even, for rotary positions (d_model is {d_model})',
    )
