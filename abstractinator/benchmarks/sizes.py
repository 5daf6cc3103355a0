"""Counts the parameters of every config, or of those named.

    python -m abstractinator.benchmarks.sizes [CONFIG ...]

Run from the repository. A config is a file of `configs/`, without its ending.
Nothing is computed: only shapes are.
"""

import importlib
import json
import pathlib
import sys
from collections.abc import Iterable

import jax

from abstractinator.config import RunConfig
from abstractinator.training.model import make_model
from abstractinator.training.objective import OBJECTIVES
from abstractinator.training.state import abstract_state

# Takes the directory of a run.
_LEFT_OUT = ('__init__', 'resume')


def names() -> list[str]:
  """Of all configs that need no argument."""
  configs = pathlib.Path(__file__).parents[2] / 'configs'
  found = sorted(path.stem for path in configs.glob('*.py'))
  return [name for name in found if name not in _LEFT_OUT]


def load(name: str) -> RunConfig:
  """The run that a config describes."""
  values = importlib.import_module(f'configs.{name}').get_config()
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def parameter_counts(config: RunConfig) -> dict[str, int]:
  """How many parameters each part has: of the levels, and the top LM."""
  state = abstract_state(
    make_model(config, 'cpu'),
    config.data.sequence_length,
    method=OBJECTIVES[config.objective].method,
  )
  counts = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    counts[_part(path)] = counts.get(_part(path), 0) + leaf.size
  return counts


def _part(path: Iterable) -> str:
  keys = [entry.key for entry in path]
  if keys[0] == 'top_lm' or keys[0] == 'expander':
    return keys[0]
  # The levels of a pyramid as wholes, the parts of a single one.
  return keys[0] if keys[0].startswith('level') else keys[1]


def table(counts: dict[str, dict[str, int]]) -> str:
  """One line a config."""
  lines = []
  for name, parts in counts.items():
    shown = ', '.join(f'{part} {size:,}' for part, size in parts.items())
    lines.append(f'{name}: {sum(parts.values()):,} ({shown})')
  return '\n'.join(lines)


def main(argv: list[str]) -> None:
  """Prints the table."""
  chosen = argv or names()
  print(table({name: parameter_counts(load(name)) for name in chosen}))


if __name__ == '__main__':
  main(sys.argv[1:])
