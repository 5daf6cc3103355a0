"""Rules by which parts of a model learn: frozen parts, and a curriculum."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from abstractinator.config import LossConfig, ModelConfig, RunConfig
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.frozen import parts
from abstractinator.objective.losses import Terms
from abstractinator.types import Array, PyTree

# Terms that no parameter outside the entropy model can lower.
_ENTROPY_TERMS = ('entropy_model', 'gaussian')


class Learning:
  """Rules by which the parts of a model learn in a step, or stay as they are.

  Frozen parts never learn. They get no gradient and no optimizer state, their
  moving average is their value, and terms that only they could lower are left
  out of the objective.

  With `loss.curriculum_steps` levels learn one after the other: level i from
  step i * `curriculum_steps` on, the top LM as if it were the level after the
  last one. With `loss.curriculum_stops` each stops when the next one starts,
  and the last of all learns to the end. The terms of a level that does not
  learn are 0. The term `rate` rises to its full size in the first
  `loss.rate_warmup_steps` steps.

  Parameters and collections of what does not learn are restored after a step,
  and so stay bit-identical.
  """

  def __init__(self, config: ModelConfig, weights: LossConfig):
    self._levels = config.levels
    self._frozen = tuple(
      part.place for part in parts(config, None) if part.is_frozen
    )
    self._interval = weights.curriculum_steps
    self._stops = weights.curriculum_stops
    self._warmup = weights.rate_warmup_steps
    names = [f'level_{number}' for number in range(len(config.levels))]
    self._places = [*names, 'top_lm']
    self._last = len(names) - (config.top_lm is None)

  def stop_gradients(self, params: PyTree) -> PyTree:
    """Returns the parameters, without gradient where they are frozen."""

    def stop(path: tuple[Any, ...], x: Array) -> Array:
      return lax.stop_gradient(x) if self._is_frozen(path) else x

    return jax.tree_util.tree_map_with_path(stop, params)

  def hide(
    self, optimizer: optax.GradientTransformation
  ) -> optax.GradientTransformation:
    """Returns an optimizer that neither updates nor stores frozen parameters.

    Args:
      optimizer: Optimizer of all other parameters.
    """
    if not self._frozen:
      return optimizer

    def label(path: tuple[Any, ...], _: Array) -> str:
      return 'frozen' if self._is_frozen(path) else 'learns'

    return optax.partition(
      {'learns': optimizer, 'frozen': optax.set_to_zero()},
      functools.partial(jax.tree_util.tree_map_with_path, label),
    )

  def learned(self, terms: Terms, step: Array | None = None) -> Terms:
    """Returns the terms that some parameter learns from.

    A frozen level has none. Terms of the levels above it and of the top LM
    depend on its parameters, too, but these do not change.

    Args:
      terms: Terms of a batch.
      step: Optimizer steps done in the run, [] int32; None to leave the
        curriculum out of account, as in evaluation.
    """

    def joined(of_level: dict[str, Array], number: int) -> dict[str, Array]:
      if step is None or not self._interval:
        return of_level
      learns = self._learns(number, step)
      return {k: jnp.where(learns, x, 0.0) for k, x in of_level.items()}

    def warmed(of_level: dict[str, Array]) -> dict[str, Array]:
      if step is None or not self._warmup or 'rate' not in of_level:
        return of_level
      share = jnp.minimum(step / self._warmup, 1.0)
      return of_level | {'rate': share * of_level['rate']}

    levels = []
    for number, of_level in enumerate(terms.levels):
      config = self._levels[number]
      if config.freeze:
        of_level = {}
      elif config.freeze_entropy_model:
        of_level = {
          k: x for k, x in of_level.items() if k not in _ENTROPY_TERMS
        }
      levels.append(joined(warmed(of_level), number))
    return ByLevel(tuple(levels), joined(terms.whole, len(self._levels)))

  def restore(
    self, variables: PyTree, before: PyTree, step: Array | None = None
  ) -> PyTree:
    """Restores what does not learn in a step.

    Args:
      variables: Parameters and collections by name, after the step.
      before: Parameters and collections before the step.
      step: Optimizer steps done before it, [] int32; None to leave the
        curriculum out of account.

    Returns:
      `variables`, with the leaves of `before` where they do not learn.
    """

    def choose(path: tuple[Any, ...], after: Array, old: Array) -> Array:
      # A path begins with the name of the collection.
      if self._is_frozen(path[1:]):
        return old
      if step is None or not self._interval:
        return after
      number = self._places.index(path[1].key)
      return jnp.where(self._learns(number, step), after, old)

    return jax.tree_util.tree_map_with_path(choose, variables, before)

  def _learns(self, number: int, step: Array) -> Array:
    """Returns whether a level learns; the top LM counts as the last level."""
    begin = number * self._interval
    learns = step >= begin
    if self._stops and number < self._last:
      learns &= step < begin + self._interval
    return learns

  def _is_frozen(self, path: tuple[Any, ...]) -> bool:
    keys = tuple(getattr(entry, 'key', None) for entry in path)
    return any(keys[: len(place)] == place for place in self._frozen)


def fitting(config: RunConfig, total_steps: int) -> RunConfig:
  """Returns a config in whose curriculum all levels and the top LM learn.

  Args:
    config: Config of the run.
    total_steps: Number of optimizer steps of the run. If it ends before the
      last of them starts to learn, all get equal parts of it.
  """
  loss, top_lm = config.loss, config.model.top_lm
  joins = len(config.model.levels) - (top_lm is None)
  if loss.curriculum_steps * joins < total_steps:
    return config
  steps = total_steps // (joins + 1)
  stops = loss.curriculum_stops and steps > 0
  loss = dataclasses.replace(
    loss, curriculum_steps=steps, curriculum_stops=stops
  )
  return dataclasses.replace(config, loss=loss)


def require_same_curriculum(
  old: RunConfig, old_steps: int, new: RunConfig, new_steps: int
) -> None:
  """Checks that a run of another length has the curriculum it began with.

  Otherwise a level that has stopped could learn again.

  Args:
    old: Config that the run began with.
    old_steps: Number of optimizer steps it would have taken.
    new: Config of the run now.
    new_steps: Number of its optimizer steps.

  Raises:
    ValueError: If levels start to learn at other steps.
  """
  before = fitting(old, old_steps).loss.curriculum_steps
  now = fitting(new, new_steps).loss.curriculum_steps
  if now != before:
    raise ValueError(
      f'max_steps, num_epochs: got {new_steps} steps, with which'
      f' loss.curriculum_steps is {now}, allowed: as many that it stays'
      f' {before}; start anew in another directory'
    )
