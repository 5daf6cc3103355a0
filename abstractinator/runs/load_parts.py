"""Loading parts of a model from other runs, strictly."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from abstractinator.config import LevelConfig, RunConfig
from abstractinator.objective.frozen import Part, parts
from abstractinator.runs import checkpoint
from abstractinator.runs.state import TrainState, variables_of
from abstractinator.types import PyTree

_ENTROPY_SETTINGS = ('d_model', 'entropy_model', 'entropy_heads')
# Of a level: where it comes from, not what it is.
_ORIGIN = ('freeze', 'freeze_entropy_model', 'load_entropy_model_from')


def load(
  state: TrainState, abstract: TrainState, config: RunConfig
) -> TrainState:
  """Puts the parts that a config names in their places.

  Args:
    state: Of step 0.
    abstract: Its shapes, dtypes and shardings.
    config: The run's.

  Returns:
    The state, with parameters and collections of other runs.

  Raises:
    ValueError: If a part is frozen but comes from nowhere, if there is no
      checkpoint, or if its level has other settings or other leaves.
  """
  num_levels = len(config.model.levels)
  variables, wanted = variables_of(state), variables_of(abstract)
  for part in parts(config.model, config.load_base_from):
    if part.source is None:
      raise ValueError(
        f'{part.setting}: got None, allowed: the directory of a run, while'
        f' {"/".join(part.path)} of model.levels[{part.level}] is frozen'
      )
    if checkpoint.latest_step(part.source) is None:
      raise ValueError(
        f'{part.setting}: got {part.source!r}, where no checkpoint is, allowed:'
        ' the directory of a run'
      )
    num_levels_there = _check_settings(part, config.model.levels[part.level])
    here, there = part.place(num_levels), part.place(num_levels_there)
    of_part = _moved(wanted, here, there)
    abstract_part = {'params': of_part.pop('params')}
    # Not every part has statistics.
    if of_part:
      abstract_part['collections'] = of_part
    loaded = checkpoint.restore_part(part.source, abstract_part, there)
    loaded = {'params': loaded['params'], **loaded.get('collections', {})}
    variables = _replaced(variables, _moved(loaded, there, here))
  params = variables.pop('params')
  # An average starts where its parameters do. It is a copy: the arrays of a
  # state are donated one by one.
  ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
  return state.replace(params=params, collections=variables, ema=ema)


def check_sources(
  config: RunConfig, stored: dict[str, Any], workdir: str
) -> None:
  """Makes sure that a run goes on with the parts that it began with.

  Args:
    config: The run's.
    stored: JSON values of the config that it goes on from.
    workdir: Where that lies, for the message.

  Raises:
    ValueError: If a part would have to come from elsewhere now.
  """
  pairs = [('load_base_from', config.load_base_from, stored['load_base_from'])]
  name = 'load_entropy_model_from'
  for number, (level, old) in enumerate(
    zip(config.model.levels, stored['model']['levels'], strict=True)
  ):
    pairs.append(
      (f'model.levels[{number}].{name}', getattr(level, name), old[name])
    )
  for setting, new, old in pairs:
    if new != old:
      raise ValueError(
        f'{setting}: got {new!r}, allowed: {old!r} as in {workdir}, whose'
        ' parameters it goes on with'
      )


def _check_settings(part: Part, level: LevelConfig) -> int:
  """Compares a level with that of its source; returns how many are there."""
  stored = checkpoint.read_config(part.source)
  levels = RunConfig.from_stored(stored, part.source).model.levels
  if part.level >= len(levels):
    raise ValueError(
      f'{part.setting}: got {part.source!r}, a run of {len(levels)} levels,'
      f' allowed: one that has model.levels[{part.level}]'
    )
  if part.path == ('compressor', 'entropy_model'):
    names = _ENTROPY_SETTINGS
  else:
    names = tuple(
      f.name for f in dataclasses.fields(level) if f.name not in _ORIGIN
    )
  ours, theirs = level.to_dict(), levels[part.level].to_dict()
  for name in names:
    if ours[name] != theirs[name]:
      raise ValueError(
        f'model.levels[{part.level}].{name}: got {ours[name]!r}, allowed:'
        f' {theirs[name]!r} as in {part.setting}, {part.source!r}'
      )
  return len(levels)


def _moved(tree: PyTree, here: tuple[str, ...], there: tuple[str, ...]):
  """What variables have at one place of a model, at another one."""
  return traverse_util.unflatten_dict(
    {
      (name, *there, *path[len(here) :]): leaf
      for (name, *path), leaf in traverse_util.flatten_dict(tree).items()
      if tuple(path[: len(here)]) == here
    }
  )


def _replaced(tree: PyTree, part: PyTree) -> PyTree:
  """A tree with the leaves of a part of it in their places."""
  flat = traverse_util.flatten_dict(tree) | traverse_util.flatten_dict(part)
  return traverse_util.unflatten_dict(flat)
