"""Parts of a model that are frozen, or loaded from other runs."""

import dataclasses

from abstractinator.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Part:
  """A subtree of the parameters and of every mutable collection.

  Attributes:
    level: Number of the level that the part belongs to, counted from 0.
    path: Names that lead to the part from its level.
    setting: Setting of the config that names the source.
    source: Directory of the run that the part is loaded from; None to start
      anew.
    is_frozen: Whether the part does not learn.
  """

  level: int
  path: tuple[str, ...]
  setting: str
  source: str | None
  is_frozen: bool

  @property
  def place(self) -> tuple[str, ...]:
    """Names that lead to the part from the root of the model."""
    return (f'level_{self.level}', *self.path)


def parts(config: ModelConfig, load_base_from: str | None) -> tuple[Part, ...]:
  """Returns the parts that a config loads or freezes; none contains another.

  Args:
    config: Config of the model.
    load_base_from: Directory of the run that frozen levels are loaded from.
  """
  found = []
  for number, level in enumerate(config.levels):
    if level.freeze:
      found += [
        Part(number, (name,), 'load_base_from', load_base_from, True)
        for name in ('compressor', 'expander')
      ]
    elif level.freeze_entropy_model or level.load_entropy_model_from:
      found.append(
        Part(
          number,
          ('compressor', 'entropy_model'),
          f'model.levels[{number}].load_entropy_model_from',
          level.load_entropy_model_from,
          level.freeze_entropy_model,
        )
      )
  return tuple(found)
