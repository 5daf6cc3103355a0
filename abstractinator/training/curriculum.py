"""Which parts of a model learn in a step: bottom up, if the config says so."""

import re

import jax
import jax.numpy as jnp

from abstractinator.config import LossConfig, RunConfig
from abstractinator.objective.frozen import level_place
from abstractinator.types import Array, PyTree

_LEVEL_OF_TERM = re.compile(r'level(\d+)/')


class Curriculum:
  """Levels that learn one after the other, and the top LM last.

  Level i learns from step i `curriculum_steps` on, the top LM as the level
  after the last would; with `curriculum_stops` each until the one above it
  joins, and the last of all to the end. What does not learn stays as it is, bit
  for bit: its terms are no part of the objective, and its parameters and
  collections are put back after the step. Without `curriculum_steps` all learn
  always.
  """

  def __init__(self, config: LossConfig, num_levels: int, has_top_lm: bool):
    self._interval = config.curriculum_steps
    self._stops = config.curriculum_stops
    self._num_levels = num_levels
    self._last = num_levels if has_top_lm else num_levels - 1

  def joined(self, terms: dict[str, Array], step: Array) -> dict[str, Array]:
    """The terms, 0 for what does not learn.

    Args:
      terms: From `pyramid_losses.terms`.
      step: [] int32, of the run.

    Returns:
      The same names.
    """
    if not self._interval:
      return terms
    found = {}
    for name, total in terms.items():
      match = _LEVEL_OF_TERM.match(name)
      number = int(match[1]) if match else 0
      if name.startswith('top_lm'):
        number = self._num_levels
      found[name] = jnp.where(self._learns(number, step), total, 0.0)
    return found

  def hold(self, after: PyTree, before: PyTree, step: Array) -> PyTree:
    """Puts back what does not learn.

    Args:
      after: Parameters, or a collection, after the step.
      before: The same before it.
      step: [] int32, of the run.

    Returns:
      `after`, but as `before` where nothing learns.
    """
    if not self._interval:
      return after
    places = {
      level_place(number, self._num_levels): number
      for number in range(self._num_levels)
    }

    def choose(path, new, old):
      name = path[0].key
      number = places.get((name,), places.get((), None))
      if name == 'top_lm':
        number = self._num_levels
      return jnp.where(self._learns(number, step), new, old)

    return jax.tree_util.tree_map_with_path(choose, after, before)

  def _learns(self, number: int, step: Array) -> Array:
    begin = number * self._interval
    learns = step >= begin
    if self._stops and number < self._last:
      learns &= step < begin + self._interval
    return learns


def require_time(config: RunConfig, total_steps: int) -> None:
  """Raises ValueError if a run ends before the last part of it joins."""
  steps = config.loss.curriculum_steps
  joins = steps * (len(config.model.levels) - (config.model.top_lm is None))
  if joins and joins >= total_steps:
    raise ValueError(
      f'loss.curriculum_steps: got {steps}, allowed: so few that all learn'
      f' within the run ({total_steps} steps)'
    )
