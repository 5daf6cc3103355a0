"""Implementations of an op against each other: errors first, then times.

They take turns, a call each, and so do the machine's own matrix product and
copy, which say what it could do: what else runs slows all of them alike.
"""

import argparse
import dataclasses
import functools
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import table, timing
from abstractinator.types import Array

# Relative to the largest number of the oracle: of values and gradients.
_TOLERANCES = {'float32': 1e-5, 'bfloat16': 2e-2}
_PLATFORMS = {'cpu': 'cpu', 'gpu': 'cuda', 'tpu': 'tpu'}
ORACLE = 'reference'


@dataclasses.dataclass(frozen=True)
class Call:
  """A compiled function with its arguments.

  Attributes:
    run: Runs it; `jax.block_until_ready` must be able to wait for what comes.
    temp_bytes: Of temporary memory; None if it is not known.
    arrays: What came, as a list of arrays.
  """

  run: Callable[[], Any]
  temp_bytes: int | None
  arrays: Callable[[Any], list[Array]] = jax.tree.leaves


@dataclasses.dataclass(frozen=True)
class Problem:
  """An op at one size.

  Attributes:
    op: Its name.
    size: Numbers behind their letters, as in `types`.
    functions: By implementation, each of the arguments.
    args: Float arrays.
    is_differentiated: Whether gradients of all arguments are taken as well.
    flops: What the op asks for, whoever computes it.
    num_bytes: Of what it must read and write.
    peers: By name, what makes the `Call` of each phase of something that jax
      does not compile.
  """

  op: str
  size: dict[str, int]
  functions: dict[str, Callable[..., Array]]
  args: tuple[Array, ...]
  is_differentiated: bool
  flops: float
  num_bytes: float
  peers: Mapping[str, Callable[[], dict[str, Call]]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def dtype(self) -> str:
    """Type of the arguments."""
    return str(self.args[0].dtype)


def measure(problem: Problem, repeats: int) -> list[dict[str, Any]]:
  """Compiles, checks and times every implementation of a problem.

  Args:
    problem: What to measure; if it has the oracle, the others are held to it.
    repeats: Calls of each.

  Returns:
    A row an implementation: milliseconds are medians, `x` factors against the
    oracle, `MiB` temporaries, `roofline` the time in which the machine's own
    product and copy would do the work of the forward pass, over that taken.

  Raises:
    ValueError: If a result is wrong.
  """
  calls = _calls(problem)
  errors = _errors(problem, calls)
  floors = []

  def floor():
    rate = timing.matmul_rate(jnp.dtype(problem.dtype), repeats=1)
    copy_rate = timing.copy_rate(repeats=1)
    floors.append(max(problem.flops / rate, problem.num_bytes / copy_rate))

  (median,) = _medians([calls], repeats, floor)
  rows = []
  for name, phases in calls.items():
    row = dict(
      op=problem.op,
      size=' '.join(f'{letter}{n}' for letter, n in problem.size.items()),
      dtype=problem.dtype,
      implementation=name,
      error=errors.get(name),
    )
    for phase, call in phases.items():
      seconds = median[name][phase]
      row[f'{phase} ms'] = seconds * 1e3
      if ORACLE in calls:
        row[f'{phase} x'] = median[ORACLE][phase] / seconds
      is_known = call.temp_bytes is not None
      row[f'{phase} MiB'] = call.temp_bytes / 2**20 if is_known else None
    row['GFLOP'] = problem.flops / 1e9
    row['MB'] = problem.num_bytes / 1e6
    row['roofline'] = statistics.median(floors) / median[name]['forward']
    rows.append(row)
  return rows


def _calls(problem: Problem) -> dict[str, dict[str, Call]]:
  """By implementation and phase; compiled side by side."""

  def compiled(function):
    program = function.lower(*problem.args).compile()
    run = functools.partial(program, *problem.args)
    return Call(run, program.memory_analysis().temp_size_in_bytes)

  with futures.ThreadPoolExecutor() as pool:
    begun = {
      name: {
        phase: pool.submit(compiled, jitted)
        for phase, jitted in _phases(problem, function).items()
      }
      for name, function in problem.functions.items()
    }
    peers = {name: make() for name, make in problem.peers.items()}
    return peers | {
      name: {phase: future.result() for phase, future in phases.items()}
      for name, phases in begun.items()
    }


def _phases(problem, function):
  if not problem.is_differentiated:
    return {'forward': jax.jit(function)}

  def both(*args):
    out, pullback = jax.vjp(function, *args)
    return out, pullback(out)

  return {'forward': jax.jit(function), 'both': jax.jit(both)}


def _medians(calls, repeats, between=lambda: None):
  """Of each problem, seconds by implementation and phase."""
  taken = [
    {name: {phase: [] for phase in phases} for name, phases in by_name.items()}
    for by_name in calls
  ]
  # The first is to warm up.
  for i in range(repeats + 1):
    between()
    for by_name, times in zip(calls, taken, strict=True):
      for name, phases in by_name.items():
        for phase, call in phases.items():
          seconds = timing.queued_seconds(call.run)
          times[name][phase] += [seconds] if i else []
  return [
    {
      name: {phase: statistics.median(t) for phase, t in phases.items()}
      for name, phases in times.items()
    }
    for times in taken
  ]


def _errors(problem, calls):
  """Of each implementation, its largest deviation from the oracle."""
  last = {name: list(phases.values())[-1] for name, phases in calls.items()}
  results = {name: call.arrays(call.run()) for name, call in last.items()}
  if ORACLE not in results:
    return {}
  errors = {}
  for name, leaves in results.items():
    if name == ORACLE:
      continue
    errors[name] = 0.0
    for got, want in zip(leaves, results[ORACLE], strict=True):
      got, want = (np.asarray(x, np.float64) for x in (got, want))
      # A gradient may be zero everywhere.
      scale = max(np.max(np.abs(want)), np.finfo(np.float32).tiny)
      error = float(np.max(np.abs(got - want)) / scale)
      # Not a number is off as well.
      if not error <= _TOLERANCES[problem.dtype]:
        raise ValueError(
          f'{problem.op} by {name}: is off by {error:.1e} of the largest,'
          f' allowed: {_TOLERANCES[problem.dtype]}'
        )
      errors[name] = max(errors[name], error)
  return errors


def scaling(
  make: Callable[[int], Problem], sizes: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
  """Measures lengths with as many ids in each, and relates cost to ids.

  Args:
    make: A problem of each length, without the oracle.
    sizes: Lengths.
    repeats: Calls of each.

  Returns:
    A row a length and implementation.
  """
  problems = [make(size) for size in sizes]
  calls = [_calls(problem) for problem in problems]
  medians = _medians(calls, repeats)
  rows = []
  for p, c, t in zip(problems, calls, medians, strict=True):
    ids = p.size['B'] * p.size.get('S', p.size.get('T', 1))
    for name, phases in c.items():
      row = dict(
        op=p.op,
        size=' '.join(f'{letter}{n}' for letter, n in p.size.items()),
        dtype=p.dtype,
        implementation=name,
      )
      for phase, call in phases.items():
        row[f'{phase} ns/id'] = t[name][phase] / ids * 1e9
        row[f'{phase} bytes/id'] = call.temp_bytes / ids
      rows.append(row)
  return rows


def main(
  name: str,
  run: Callable[[argparse.Namespace], Iterable[list[dict[str, Any]]]],
  argv: Sequence[str],
) -> None:
  """The command of a benchmark: prints tables.

  Args:
    name: Of the module.
    run: From the arguments to tables, each shown when it is there.
    argv: The command line without the command.
  """
  parser = argparse.ArgumentParser(
    prog=f'python -m abstractinator.benchmarks.{name}'
  )
  parser.add_argument('--device', choices=sorted(_PLATFORMS), default=None)
  parser.add_argument('--dtype', choices=sorted(_TOLERANCES), default='float32')
  parser.add_argument('--repeats', type=int, default=9, help='calls of each')
  parser.add_argument(
    '--small', action='store_true', help='tiny sizes, to see that it runs'
  )
  parser.add_argument('--json', metavar='FILE', help='append JSON lines to it')
  args = parser.parse_args(argv)
  if args.repeats < 1:
    parser.error(f'--repeats: got {args.repeats}, allowed: >= 1')
  if args.device:
    jax.config.update('jax_platforms', _PLATFORMS[args.device])
  try:
    device = jax.devices()[0]
  except RuntimeError as error:
    parser.error(f'--device: got {args.device}, which is not here: {error}')
  args.device = device.platform
  about = dict(
    command=f'{parser.prog} {" ".join(_without_json(argv))}'.strip(),
    device=device.device_kind
    if device.platform != 'cpu'
    else f'{len(os.sched_getaffinity(0))} cores, {platform.machine()}',
    jax=jax.__version__,
  )
  print(f'{about["device"]}, jax {about["jax"]}: {about["command"]}')
  for rows in run(args):
    print(f'\n{table.markdown(rows)}', flush=True)
    if args.json:
      with open(args.json, 'a') as file:
        file.write(table.json_lines([about | row for row in rows]) + '\n')


def _without_json(argv):
  """Where the lines went says nothing of them."""
  kept = argparse.ArgumentParser(add_help=False)
  kept.add_argument('--json')
  return kept.parse_known_args(argv)[1]
