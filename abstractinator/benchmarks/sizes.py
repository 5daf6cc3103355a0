"""Sizes of every config, or of those named.

    python -m abstractinator.benchmarks.sizes [CONFIG ...]

Run from the repository. A config is a file of `configs/`, without its ending.
Nothing is computed: only shapes are. Of each it prints the parameters of its
parts, the bytes of what a checkpoint holds (parameters, moments of the
optimizer, codebooks), and the floating point operations of a step.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterable

import jax

from abstractinator.benchmarks import named_configs
from abstractinator.config import RunConfig
from abstractinator.training.flops import abstract_state, model_flops

_PREFIXES = ('', 'k', 'M', 'G', 'T', 'P')


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a run takes.

  Attributes:
    parameters: How many each part has: of the levels, and the top LM.
    state_bytes: Of a `TrainState`.
    step_flops: Of the matrix products of a step, see `training_flops`; that
      frozen parts need less is not taken into account.
  """

  parameters: dict[str, int]
  state_bytes: int
  step_flops: int

  def __str__(self) -> str:
    parts = ', '.join(f'{name} {n:,}' for name, n in self.parameters.items())
    return (
      f'Parameters: {sum(self.parameters.values()):,} ({parts}). Expect:'
      f' {with_prefix(self.state_bytes)}B of state,'
      f' {with_prefix(self.step_flops)}FLOP a step.'
    )


def measure(config: RunConfig) -> Sizes:
  """Sizes of a run, as XLA computes it on one device."""
  state = abstract_state(config)
  parameters = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    parameters[_part(path)] = parameters.get(_part(path), 0) + leaf.size
  return Sizes(
    parameters,
    sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)),
    model_flops(config),
  )


def with_prefix(count: int) -> str:
  """Three digits and an SI prefix: 1234567 is '1.23 M'."""
  digits = max(len(f'{float(f"{count:.3g}"):.0f}'), 1)
  power = (digits - 1) // 3
  scaled = count / 1000**power
  return f'{scaled:.{3 * power + 3 - digits}f} {_PREFIXES[power]}'


def _part(path: Iterable) -> str:
  keys = [entry.key for entry in path]
  if keys[0] == 'top_lm' or keys[0] == 'expander':
    return keys[0]
  # The levels of a pyramid as wholes, the parts of a single one.
  return keys[0] if keys[0].startswith('level') else keys[1]


def main(argv: list[str]) -> None:
  """Prints a line a config."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('name', nargs='*', help='configs; all if none is given')
  chosen = parser.parse_args(argv).name or named_configs.names()
  allowed = named_configs.names()
  for name in chosen:
    if name not in allowed:
      parser.error(f'name: got {name!r}, allowed: {", ".join(allowed)}')
  for name in chosen:
    print(f'{name}: {measure(named_configs.load(name))}')


if __name__ == '__main__':
  main(sys.argv[1:])
