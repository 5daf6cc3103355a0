"""Parts of a model that come from another run, and those that do not learn."""

import dataclasses
from collections.abc import Sequence

import jax
import optax
from jax import lax

from abstractinator.config import ModelConfig
from abstractinator.types import Array, PyTree

_LEVEL = ('compressor', 'expander')
_ENTROPY_MODEL = ('compressor', 'entropy_model')
# What ids cost the entropy model; see `losses.terms`.
_ENTROPY_TERMS = ('entropy_model', 'gaussian')


@dataclasses.dataclass(frozen=True)
class Part:
  """A subtree of the parameters and of every mutable collection.

  Attributes:
    level: Which level it is of.
    path: Where it lies in the level.
    setting: Of the config, that names its source.
    source: Directory of the run it comes from; None to start anew.
    is_frozen: Whether it stays as it is.
  """

  level: int
  path: tuple[str, ...]
  setting: str
  source: str | None
  is_frozen: bool

  def place(self, num_levels: int) -> tuple[str, ...]:
    """Its path in a model of so many levels."""
    return level_place(self.level, num_levels) + self.path


def level_place(level: int, num_levels: int) -> tuple[str, ...]:
  """Where the parameters of a level lie in a model of so many levels."""
  return () if num_levels == 1 else (f'level_{level}',)


def parts(config: ModelConfig, load_base_from: str | None) -> tuple[Part, ...]:
  """The parts that a config names, none of them inside another."""
  found = []
  for number, level in enumerate(config.levels):
    if level.freeze:
      found += [
        Part(number, (name,), 'load_base_from', load_base_from, True)
        for name in _LEVEL
      ]
    elif level.freeze_entropy_model or level.load_entropy_model_from:
      found.append(
        Part(
          number,
          _ENTROPY_MODEL,
          f'model.levels[{number}].load_entropy_model_from',
          level.load_entropy_model_from,
          level.freeze_entropy_model,
        )
      )
  return tuple(found)


class Frozen:
  """What does not learn, as a part of a step: all of it follows from a config.

  Frozen parameters get no gradient and have no place in the optimizer, and are
  their own moving average; frozen collections are put back after a step; and
  what only they could lower is no part of the objective.
  """

  def __init__(self, config: ModelConfig):
    self._num_levels = len(config.levels)
    self._parts = tuple(p for p in parts(config, None) if p.is_frozen)
    self._places = tuple(part.place(self._num_levels) for part in self._parts)

  def stop_gradients(self, params: PyTree) -> PyTree:
    """The parameters, without gradient where they are frozen."""
    return self._map(params, lambda x: lax.stop_gradient(x), lambda x: x)

  def restore(self, variables: PyTree, before: PyTree) -> PyTree:
    """Collections after a step, as before where they are frozen."""

    def choose(path, after, old):
      # A path begins with the name of the collection.
      return old if self._is_frozen(path[1:]) else after

    return jax.tree_util.tree_map_with_path(choose, variables, before)

  def hide(
    self, optimizer: optax.GradientTransformation
  ) -> optax.GradientTransformation:
    """An optimizer that neither moves nor remembers what is frozen."""
    if not self._parts:
      return optimizer
    return optax.partition(
      {'learns': optimizer, 'frozen': optax.set_to_zero()},
      lambda params: self._map(params, lambda _: 'frozen', lambda _: 'learns'),
    )

  def learned(self, terms: dict[str, Array]) -> dict[str, Array]:
    """The terms that something still learns from; see `pyramid_losses.terms`.

    A level that is frozen has none: those of the levels above and of the top LM
    go through its parameters, and its own do not change.
    """
    found = dict(terms)
    for part in self._parts:
      prefix = '' if self._num_levels == 1 else f'level{part.level}/'
      for name in terms:
        head, slash, kind = name.rpartition('/')
        is_of_level = head + slash == prefix and not kind.startswith('top_lm')
        if is_of_level and (
          part.path != _ENTROPY_MODEL or kind in _ENTROPY_TERMS
        ):
          found.pop(name, None)
    return found

  def _is_frozen(self, path: Sequence) -> bool:
    keys = tuple(getattr(entry, 'key', None) for entry in path)
    return any(keys[: len(place)] == place for place in self._places)

  def _map(self, params, frozen, learns):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: (frozen if self._is_frozen(path) else learns)(x), params
    )
