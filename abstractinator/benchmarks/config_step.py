r"""Speed and memory of the training step of configs, on one device.

    python -m abstractinator.benchmarks.config_step regular_pallas \
      --set model.dtype=bfloat16 --set data.batch_size=32

Run from the repository. A config is a file of `configs/`, without its ending;
rows are random bytes. All configs take turns, a step each, and so does a matrix
product, the measure of the machine. Floating point operations are those of
matrix products, counted once: what `remat` computes anew is not in them.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from abstractinator.benchmarks import named_configs, table, timing, turns
from abstractinator.benchmarks.baseline import random_batch
from abstractinator.config import RunConfig
from abstractinator.runs import huge_pages
from abstractinator.runs.chips import chip_of
from abstractinator.training.flops import training_flops
from abstractinator.training.program import make_program

_WARMUP_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Step:
  """A compiled training step.

  Attributes:
    config: The run.
    take: Takes a step; returns something to wait for.
    flops: Of a step.
    memory_bytes: What it takes: state, batch and temporaries.
  """

  config: RunConfig
  take: Callable[[], Any]
  flops: int
  memory_bytes: int


def compile_step(config: RunConfig) -> Step:
  """Compiles a step for the device at hand, and makes its first state."""
  data = config.data
  program = make_program(
    config,
    jax.default_backend(),
    total_steps=config.optimizer.warmup_steps + 1000,
  )
  batch = jax.device_put(random_batch((data.batch_size, data.sequence_length)))
  state = jax.jit(program.init)(jax.random.key(0))
  step = jax.jit(program.step, donate_argnums=0).lower(state, batch).compile()
  flops = training_flops(program.init, jax.random.key(0))
  memory = step.memory_analysis()
  states = [state]

  def take():
    state, metrics = step(states.pop(), batch)
    states.append(state)
    return metrics

  return Step(
    config,
    take,
    flops,
    memory.argument_size_in_bytes + memory.temp_size_in_bytes,
  )


def measure(steps: Mapping[str, Step], num_steps: int) -> list[dict[str, Any]]:
  """Times steps that take turns.

  Args:
    steps: By name.
    num_steps: Of each.

  Returns:
    A row each; times are medians.
  """
  dtype = jnp.dtype(next(iter(steps.values())).config.model.dtype)
  durations = {name: [] for name in steps}
  rates = []
  for i in range(_WARMUP_STEPS + num_steps):
    for name, step in steps.items():
      seconds = timing.seconds(step.take, 1)
      durations[name] += seconds if i >= _WARMUP_STEPS else []
    rates.append(timing.matmul_rate(dtype, repeats=1))
  rate = statistics.median(rates)
  chip = chip_of(jax.devices()[0].device_kind)
  rows = []
  for name, step in steps.items():
    seconds = statistics.median(durations[name])
    data = step.config.data
    achieved = step.flops / seconds
    rows.append(
      {
        'config': name,
        'B': data.batch_size,
        'S': data.sequence_length,
        'dtype': step.config.model.dtype,
        'step ms': seconds * 1e3,
        'kB/s': data.batch_size * data.sequence_length / seconds / 1e3,
        'TFLOP/s': achieved / 1e12,
        'of matmul': achieved / rate,
        'of peak': achieved / chip.flops_per_second if chip else None,
        'GiB': step.memory_bytes / 2**30,
      }
    )
  return rows


def main(argv: Sequence[str]) -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    prog='python -m abstractinator.benchmarks.config_step',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('name', nargs='+', help='configs')
  named_configs.add_settings(parser)
  named_configs.add_settings(parser, '--vary', 'each config once more with it')
  parser.add_argument('--steps', type=int, default=10, help='timed, of each')
  parser.add_argument('--json', metavar='FILE', help='append JSON lines to it')
  args = parser.parse_args(argv)
  if args.steps < 1:
    parser.error(f'--steps: got {args.steps}, allowed: >= 1')
  steps = {}
  for name in args.name:
    for extra in [None, *args.vary]:
      label = name if extra is None else f'{name}, {extra[0]} {extra[1]}'
      settings = [*args.set, *([extra] if extra else [])]
      try:
        config = named_configs.load(name, settings)
      except ValueError as error:
        parser.error(str(error))
      print(f'compiling {label}', file=sys.stderr)
      steps[label] = compile_step(config)
  turns.take()
  rows = measure(steps, args.steps)
  about = dict(
    command=' '.join((parser.prog, *argv)),
    device=jax.devices()[0].device_kind,
    jax=jax.__version__,
  )
  print(f'{about["device"]}, jax {about["jax"]}: {about["command"]}\n')
  print(table.markdown(rows))
  if args.json:
    with open(args.json, 'a') as file:
      file.write(table.json_lines([about | row for row in rows]) + '\n')


if __name__ == '__main__':
  huge_pages.ensure()
  main(sys.argv[1:])
