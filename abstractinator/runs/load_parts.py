"""Parts of a model that a run takes from the checkpoints of other runs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from abstractinator.config import LevelConfig, RunConfig
from abstractinator.objective.frozen import Part, parts
from abstractinator.runs.load import open_source
from abstractinator.runs.state import TrainState, variables_of
from abstractinator.types import PyTree

_ENTROPY_SETTINGS = ('d_model', 'entropy_model', 'entropy_heads')
# Settings of a level that say where it comes from and not what it is.
_ORIGIN = ('freeze', 'freeze_entropy_model', 'load_entropy_model_from')


def load(
  state: TrainState, abstract: TrainState, config: RunConfig
) -> TrainState:
  """Replaces the parts of a new state that a config takes from other runs.

  Args:
    state: State of step 0.
    abstract: Shapes, dtypes and shardings of `state`.
    config: Config of the run.

  Returns:
    The state with parameters and collections of the other runs.

  Raises:
    ValueError: If a part is frozen but comes from nowhere, if there is no
      checkpoint, or if its level has other settings or other leaves.
  """
  variables, wanted = variables_of(state), variables_of(abstract)
  for part in parts(config.model, config.load_base_from):
    if part.source is None:
      raise ValueError(
        f'{part.setting}: got None, allowed: the directory of a run, because'
        f' {"/".join(part.path)} of model.levels[{part.level}] is frozen'
      )
    try:
      source = open_source(part.source)
    except ValueError as error:
      raise ValueError(f'{part.setting}: {error}') from error
    level = config.model.levels[part.level]
    _require_same_settings(part, level, source.config)
    loaded = source.variables(_at(part.place, wanted), part.place)
    variables = traverse_util.unflatten_dict(
      traverse_util.flatten_dict(variables) | traverse_util.flatten_dict(loaded)
    )
  params = variables.pop('params')
  # An average starts at its parameters. It is a copy: the arrays of a state are
  # donated one by one.
  ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
  return dataclasses.replace(
    state, params=params, collections=variables, ema=ema
  )


def check_sources(
  config: RunConfig, stored: dict[str, Any], workdir: str
) -> None:
  """Makes sure that a resumed run names the parts that it began with.

  Args:
    config: Config of the run.
    stored: JSON values of the config in the checkpoint it resumes from.
    workdir: Directory of the run with this checkpoint, for the message.

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
        ' parameters the run continues with'
      )


def _require_same_settings(
  part: Part, level: LevelConfig, source: RunConfig
) -> None:
  """Raises ValueError if a part has other settings in the run it comes from."""
  levels = source.model.levels
  if part.level >= len(levels):
    raise ValueError(
      f'{part.setting}: got {part.source!r}, a run of {len(levels)} levels,'
      f' allowed: one that has model.levels[{part.level}]'
    )
  ours, theirs = level.to_dict(), levels[part.level].to_dict()
  is_entropy_model = part.path == ('compressor', 'entropy_model')
  for name in _ENTROPY_SETTINGS if is_entropy_model else ours:
    if name not in _ORIGIN and ours[name] != theirs[name]:
      raise ValueError(
        f'model.levels[{part.level}].{name}: got {ours[name]!r}, allowed:'
        f' {theirs[name]!r} as in {part.setting}, {part.source!r}'
      )


def _at(place: tuple[str, ...], variables: PyTree) -> dict[str, PyTree]:
  """Returns the variables of the module at a path, without all others."""
  return traverse_util.unflatten_dict(
    {
      path: leaf
      for path, leaf in traverse_util.flatten_dict(variables).items()
      if path[1 : len(place) + 1] == place
    }
  )
